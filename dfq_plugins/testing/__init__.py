"""Contracts that a plugin's own tests inherit: subclass one, give it one fixture, and run pytest.

::

    from dfq_plugins.testing import GeneratorContract

    class TestUniform(GeneratorContract):
        @pytest.fixture
        def generator(self):
            return Uniform(UniformOptions())

`dfq plugins --check NAME` runs the same contract on an installed plugin. Needs pytest (`dfq-plugins[test]`).
"""

from dfq_plugins.testing.calibrator import CalibratorContract
from dfq_plugins.testing.generator import GeneratorContract
from dfq_plugins.testing.learning import LearningGeneratorContract

__all__ = ["CalibratorContract", "GeneratorContract", "LearningGeneratorContract"]
