"""pytorch-quantization, as the algorithm that it shares with ModelOpt sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfq_pytorch_quantization.framework import QuantDescriptor, calib, quant_nn, without_cuda
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from dfq_pytorch_quantization.prebuilt import to_float_modules
from dfq_pytorch_quantization.swap import reason_for_float, swap
from dfq_pytorch_quantization.way_round import way_round
from dfq_shared.tensorrt.backend import Backend
from dfq_shared.tensorrt.observers import HistogramObserver, Observer

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Recipe
    from dfq_shared.tensorrt.options import RangeOptions


class GuardedMax(Observer, calib.MaxCalibrator):  # type: ignore[misc]  # the framework has no types
    """Records the largest absolute value."""


class GuardedHistogram(HistogramObserver, calib.HistogramCalibrator):  # type: ignore[misc]  # as above
    """Records a histogram of absolute values."""


class PytorchQuantizationBackend(Backend):
    """The framework's quantized modules, quantizers and searches."""

    name = "pytorch-quantization"
    file_name = "model_qdq.onnx"
    notices = NOTICES
    logger = LOGGER
    max_observer = GuardedMax
    histogram_observer = GuardedHistogram

    def quantized(self, model: nn.Module, recipe: Recipe, options: RangeOptions) -> nn.Module:
        """Replace every layer with the framework's quantized one."""
        return swap(to_float_modules(model), recipe, options)

    def reason_for_float(self, module: nn.Module, *, pooling: bool) -> str | None:
        """Return why a layer stays in float."""
        return reason_for_float(module, pooling=pooling)

    def new_quantizer(self, bits: int, *, histogram: bool) -> nn.Module:
        """Return a quantizer for a tensor between layers."""
        method = "histogram" if histogram else "max"
        quantizer: nn.Module = quant_nn.TensorQuantizer(
            QuantDescriptor(num_bits=bits, calib_method=method), if_quant=False
        )
        return quantizer

    def search_weight_range(self, layer: Any, *, per_channel: bool, bins: int) -> None:
        """Let the framework search the ranges on histograms, one a channel."""
        with without_cuda():
            calib.calibrate_weights(layer, method="mse", perchannel=per_channel, num_bins=bins)

    def way_round(self, name: str) -> str:
        """Return what a user can do about a part that the framework fails on."""
        return way_round(name)
