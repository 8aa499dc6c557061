"""Takes a float model through NVIDIA ModelOpt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_modelopt.backend import ModelOptBackend
from dfq_modelopt.fit import fitted
from dfq_modelopt.insert import require_unconverted
from dfq_modelopt.options import ModelOptOptions
from dfq_plugins.errors import UsageError
from dfq_shared.tensorrt.calibrator import TensorrtCalibrator

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Recipe, Specification


FP8_BITS = 8


class ModelOptCalibrator(TensorrtCalibrator):
    """Lets ModelOpt insert its quantizers into every layer; see `TensorrtCalibrator`.

    Args:
        options: how ranges are chosen.
    """

    def __init__(self, options: ModelOptOptions | None = None) -> None:
        settings = options or ModelOptOptions()
        super().__init__(ModelOptBackend(fp8=settings.fp8), settings)
        self._trace, self._fp8 = settings.trace, settings.fp8

    def prepare(self, model: nn.Module, spec: Specification, recipe: Recipe, *, training: bool) -> nn.Module:
        """Return a copy in eval mode with the framework's quantizers; it computes in float until calibrated.

        Raises:
            UsageError: a bit width cannot be exported, or is not 8 with `fp8`.
            ModelError: the model has no layer that the framework can quantize, was converted by ModelOpt before, has
                weights that are not finite, or does not accept inputs of the shape in the spec.
        """
        if self._fp8 and (recipe.weight_bits, recipe.activation_bits) != (FP8_BITS, FP8_BITS):
            raise UsageError(f"fp8=true needs the recipe w8a8, got {recipe}. Leave out fp8 for integers.")
        return super().prepare(model, spec, recipe, training=training)

    def _fitted(self, model: nn.Module, spec: Specification) -> nn.Module:
        require_unconverted(model)
        return fitted(model, spec, self._trace)
