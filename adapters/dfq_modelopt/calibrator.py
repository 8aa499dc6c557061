"""Takes a float model through NVIDIA ModelOpt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_modelopt.backend import ModelOptBackend
from dfq_modelopt.fit import fitted
from dfq_modelopt.insert import require_unconverted
from dfq_modelopt.options import ModelOptOptions
from dfq_shared.tensorrt.calibrator import TensorrtCalibrator

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Specification


class ModelOptCalibrator(TensorrtCalibrator):
    """Lets ModelOpt insert its quantizers into every layer; see `TensorrtCalibrator`.

    Args:
        options: how ranges are chosen.
    """

    def __init__(self, options: ModelOptOptions | None = None) -> None:
        settings = options or ModelOptOptions()
        super().__init__(ModelOptBackend(), settings)
        self._trace = settings.trace

    def _fitted(self, model: nn.Module, spec: Specification) -> nn.Module:
        require_unconverted(model)
        return fitted(model, spec, self._trace)
