from __future__ import annotations

import pytest

from dfq_onnxruntime.calibrator import OnnxRuntimeCalibrator
from dfq_onnxruntime.options import OnnxRuntimeOptions
from dfq_plugins.testing import CalibratorContract


class TestOnnxRuntime(CalibratorContract):
    @pytest.fixture
    def calibrator(self) -> OnnxRuntimeCalibrator:
        return OnnxRuntimeCalibrator(OnnxRuntimeOptions())
