import pytest

from dfq_onnxruntime.calibrator import OnnxRuntimeCalibrator
from dfq_onnxruntime.plugin import OnnxRuntimeOptions
from dfq_plugins.testing import CalibratorContract


class TestOnnxRuntime(CalibratorContract):
    @pytest.fixture
    def calibrator(self):
        return OnnxRuntimeCalibrator(OnnxRuntimeOptions())
