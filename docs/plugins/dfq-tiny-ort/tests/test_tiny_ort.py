import pytest
from dfq_tiny_ort.calibrator import OnnxRuntimeCalibrator
from dfq_tiny_ort.plugin import OnnxRuntimeOptions

from dfq_plugins.testing import CalibratorContract


class TestOnnxRuntime(CalibratorContract):
    @pytest.fixture
    def calibrator(self):
        return OnnxRuntimeCalibrator(OnnxRuntimeOptions())
