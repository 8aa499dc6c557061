"""Takes a float model through NVIDIA ModelOpt."""

from __future__ import annotations

from dfq_modelopt.backend import ModelOptBackend
from dfq_modelopt.options import ModelOptOptions
from dfq_shared.tensorrt.calibrator import TensorrtCalibrator


class ModelOptCalibrator(TensorrtCalibrator):
    """Lets ModelOpt insert its quantizers into every layer; see `TensorrtCalibrator`.

    Args:
        options: how ranges are chosen.
    """

    def __init__(self, options: ModelOptOptions | None = None) -> None:
        super().__init__(ModelOptBackend(), options or ModelOptOptions())
