import pytest
from dfq_ascent.generator import Ascent
from dfq_ascent.plugin import AscentOptions

from dfq_plugins.testing import LearningGeneratorContract


class TestAscent(LearningGeneratorContract):
    @pytest.fixture
    def generator(self):
        return Ascent(AscentOptions(student_steps=2))
