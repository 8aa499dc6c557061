"""ModelOpt, as the algorithm that it shares with pytorch-quantization sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfq_modelopt.framework import calib, quant_nn
from dfq_modelopt.insert import activation_config, insert_quantizers, reason_for_float
from dfq_modelopt.notices import NOTICES
from dfq_modelopt.way_round import way_round
from dfq_shared.tensorrt.backend import Backend
from dfq_shared.tensorrt.observers import HistogramObserver, Observer
from dfq_shared.tensorrt.quantizers import weight_axis
from dfq_shared.tensorrt.range_search import search_weight_ranges

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Recipe
    from dfq_shared.tensorrt.options import RangeOptions


class GuardedMax(Observer, calib.MaxCalibrator):  # type: ignore[misc]  # the framework has no types
    """Records the largest absolute value."""


class GuardedHistogram(HistogramObserver, calib.HistogramCalibrator):  # type: ignore[misc]  # as above
    """Records a histogram of absolute values."""


class ModelOptBackend(Backend):
    """The framework's quantizers and searches.

    Args:
        fp8: whether every quantizer has floating-point levels.
    """

    name = "modelopt"
    file_name = "model.modelopt.onnx"
    notices = NOTICES
    max_observer = GuardedMax
    histogram_observer = GuardedHistogram

    def __init__(self, *, fp8: bool = False) -> None:
        self._fp8 = fp8

    def quantized(self, model: nn.Module, recipe: Recipe, options: RangeOptions) -> nn.Module:
        """Let the framework insert its quantizers, and configure those of every layer."""
        return insert_quantizers(model, recipe, options, fp8=self._fp8)

    def reason_for_float(self, module: nn.Module, *, pooling: bool) -> str | None:
        """Return why a layer stays in float."""
        return reason_for_float(module, pooling=pooling)

    def new_quantizer(self, bits: int, *, histogram: bool) -> nn.Module:
        """Return a quantizer for a tensor between layers."""
        quantizer: nn.Module = quant_nn.TensorQuantizer(
            activation_config(bits, histogram=histogram, fp8=self._fp8), if_quant=False
        )
        return quantizer

    def search_weight_range(self, layer: Any, *, per_channel: bool, bins: int) -> None:
        """Search the ranges on histograms, one a channel.

        ModelOpt's own search (`_compute_amax_mse`) passes the bit width as the bias of the fake quantization, and so
        returns its first candidate, half of the largest weight; it also takes axis 0 for the output channels of
        transposed convolutions.
        """
        quantizer = layer.weight_quantizer
        axis = weight_axis(type(layer)) if per_channel else None
        quantizer.amax = search_weight_ranges(layer.weight, axis=axis, num_bits=quantizer.num_bits, bins=bins)

    def way_round(self, name: str) -> str:
        """Return what a user can do about a part that the framework fails on."""
        return way_round(name)
