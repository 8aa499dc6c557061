"""Lets the framework choose each quantizer's range: for inputs from calibration, for weights from the weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dfq_shared.tensorrt.quantizers import is_integer, set_unsigned, weight_axis

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from dfq_shared.tensorrt.backend import Backend
    from dfq_shared.tensorrt.observers import Observer
    from dfq_shared.tensorrt.options import RangeOptions

TENSORRT_BITS = 8
"""Width of the integers that TensorRT computes with, which are always signed."""

SMALLEST_AMAX = 2.0**-23
"""Twice the value that the framework treats as zero: a range of zero has a scale of zero, which ONNX does not allow."""

WEIGHT_BINS = 256
"""Bins for the weights of one channel. The framework searches from bin 128 on: from half of the maximum."""

CANDIDATES = {"mse": 512, "entropy": 128}
"""Maximum number of ranges that the search for one activation tries."""


def load_activation_range(quantizer: Any, options: RangeOptions, device: torch.device) -> None:
    """Let the framework compute the range of an input quantizer from what its calibrator saw."""
    observer: Observer = quantizer._calibrator  # noqa: SLF001  (no public access)
    if is_integer(quantizer) and wants_unsigned(options, quantizer.num_bits) and observer.lowest >= 0:
        set_unsigned(quantizer, unsigned=True)
    if observer.lowest == observer.highest == 0:
        quantizer.amax = SMALLEST_AMAX
    else:
        quantizer.load_calib_amax(**_method_arguments(observer, options))
    _finish_range(quantizer, device)


def _method_arguments(observer: Any, options: RangeOptions) -> dict[str, Any]:
    """Return the arguments for `compute_amax` of the framework's calibrator."""
    if not hasattr(observer, "_num_bins"):  # no histogram
        return {}
    if options.activations == "percentile":
        return {"method": "percentile", "percentile": options.percentile}
    bins = observer._calib_hist.numel()  # noqa: SLF001  (no public access)
    return {"method": options.activations, "stride": max(1, bins // CANDIDATES[options.activations])}


def load_weight_range(layer: Any, backend: Backend, options: RangeOptions, device: torch.device) -> None:
    """Let the framework compute the weight ranges of a layer, per channel or per tensor."""
    quantizer = layer.weight_quantizer
    if options.weights == "max" or not is_integer(quantizer):
        quantizer._calibrator.reset()  # noqa: SLF001  (no public access)
        quantizer._calibrator.collect(layer.weight)  # noqa: SLF001  (as above)
        quantizer.load_calib_amax()
    else:
        with _without_zero_channels(layer):
            backend.search_weight_range(layer, per_channel=options.per_channel, bins=WEIGHT_BINS)
    _finish_range(quantizer, device)


@contextmanager
def _without_zero_channels(layer: nn.Module) -> Iterator[None]:
    """Within the block, set all-zero output channels of the weight to ones: the framework's histogram fails on zeros.

    Any range works for them, since every range has zero as a level.
    """
    weight: torch.Tensor = layer.weight.data  # type: ignore[assignment]
    axis = weight_axis(type(layer))
    others = [index for index in range(weight.dim()) if index != axis]
    empty = weight.abs().amax(others, keepdim=True) == 0
    weight.masked_fill_(empty, 1.0)
    try:
        yield
    finally:
        weight.masked_fill_(empty, 0.0)


def _finish_range(quantizer: Any, device: torch.device) -> None:
    """Move the range to the layer's device, and keep it above zero."""
    quantizer.to(device)
    quantizer.amax.clamp_(min=SMALLEST_AMAX)


def wants_unsigned(options: RangeOptions, bits: int) -> bool:
    """Return whether inputs that are never negative should be quantized to unsigned levels of this width.

    Only below 8 bits: levels up to 127 fit into int8, the only type that TensorRT computes with.
    """
    return bits < TENSORRT_BITS and options.unsigned is not False
