"""Takes a float model through NVIDIA pytorch-quantization."""

from __future__ import annotations

from dfq_pytorch_quantization.backend import PytorchQuantizationBackend
from dfq_pytorch_quantization.options import PytorchQuantizationOptions
from dfq_shared.tensorrt.calibrator import TensorrtCalibrator


class PytorchQuantizationCalibrator(TensorrtCalibrator):
    """Swaps layers for the framework's quantized ones; see `TensorrtCalibrator`.

    Args:
        options: how ranges are chosen.
    """

    def __init__(self, options: PytorchQuantizationOptions | None = None) -> None:
        super().__init__(PytorchQuantizationBackend(), options or PytorchQuantizationOptions())
