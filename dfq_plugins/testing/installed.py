"""Contract tests for a plugin passed in by `run_contract`, and collected only by it."""

from __future__ import annotations

from typing import Any

import pytest

from dfq_plugins.testing import CalibratorContract, GeneratorContract, LearningGeneratorContract


class InstalledGenerator(GeneratorContract):
    """The contract of the generator under check."""

    @pytest.fixture
    def generator(self, plugin_under_check: Any) -> Any:
        """Return the plugin object."""
        return plugin_under_check


class InstalledLearningGenerator(LearningGeneratorContract):
    """The contract of the learning generator under check."""

    @pytest.fixture
    def generator(self, plugin_under_check: Any) -> Any:
        """Return the plugin object."""
        return plugin_under_check


class InstalledCalibrator(CalibratorContract):
    """The contract of the calibrator under check."""

    @pytest.fixture
    def calibrator(self, plugin_under_check: Any) -> Any:
        """Return the plugin object."""
        return plugin_under_check
