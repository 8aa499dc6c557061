"""Lets the framework choose the range of each quantizer: inputs from what calibration saw, weights from themselves."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dfq_pytorch_quantization.framework import calib, without_cuda
from dfq_pytorch_quantization.observers import set_unsigned
from dfq_pytorch_quantization.swap import quantized_modules, weight_axis

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from dfq_pytorch_quantization.observers import HistogramObserver, MaxObserver
    from dfq_pytorch_quantization.options import PytorchQuantizationOptions

TENSORRT_BITS = 8
"""Width of the integers that TensorRT computes in, signed alone."""

SMALLEST_AMAX = 2.0**-23
"""Twice what the framework takes for zero: a range of zero has a scale of zero, which ONNX cannot hold."""

WEIGHT_BINS = 256
"""Bins for the weights of one channel. The framework searches from bin 128 on: from half of the maximum."""

CANDIDATES = {"mse": 512, "entropy": 128}
"""How many ranges the search of one activation tries at most."""


def calibrated_inputs(model: nn.Module) -> list[tuple[str, Any]]:
    """Return name and module of the quantized modules whose input range is to be calibrated."""
    return [(name, m) for name, m in quantized_modules(model) if m.input_quantizer._calibrator is not None]  # noqa: SLF001


def load_activation_range(quantizer: Any, options: PytorchQuantizationOptions, device: torch.device) -> None:
    """Let the framework compute the range of an input quantizer from what its calibrator saw."""
    observer: MaxObserver | HistogramObserver = quantizer._calibrator  # noqa: SLF001  (no public access)
    if wants_unsigned(options, quantizer.num_bits) and observer.lowest >= 0:
        set_unsigned(quantizer, unsigned=True)
    if observer.lowest == observer.highest == 0:
        quantizer.amax = SMALLEST_AMAX
    else:
        quantizer.load_calib_amax(**_method_arguments(observer, options))
    _settle(quantizer, device)


def _method_arguments(observer: Any, options: PytorchQuantizationOptions) -> dict[str, Any]:
    """Return the arguments of `compute_amax` of the framework's calibrator."""
    if options.activations == "max":
        return {}
    if options.activations == "percentile":
        return {"method": "percentile", "percentile": options.percentile}
    bins = observer._calib_hist.numel()  # noqa: SLF001  (no public access)
    return {"method": options.activations, "stride": max(1, bins // CANDIDATES[options.activations])}


def load_weight_range(layer: Any, options: PytorchQuantizationOptions, device: torch.device) -> None:
    """Let the framework compute the weight ranges of one layer, each channel's or the whole tensor's."""
    quantizer = layer.weight_quantizer
    if options.weights == "max":
        quantizer._calibrator.reset()  # noqa: SLF001  (no public access)
        quantizer._calibrator.collect(layer.weight)  # noqa: SLF001  (as above)
        quantizer.load_calib_amax()
    else:
        with without_cuda(), _no_channel_of_zeros(layer):
            calib.calibrate_weights(layer, method="mse", perchannel=options.per_channel, num_bins=WEIGHT_BINS)
    _settle(quantizer, device)


@contextmanager
def _no_channel_of_zeros(layer: nn.Module) -> Iterator[None]:
    """Fill the output channels whose weights are all zero with ones: the framework's histogram of zeros fails.

    Their range may be any, since zero is a level of every range.
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


def _settle(quantizer: Any, device: torch.device) -> None:
    """Put the range on the device of the layer, and keep it off zero."""
    quantizer.to(device)
    quantizer.amax.clamp_(min=SMALLEST_AMAX)


def wants_unsigned(options: PytorchQuantizationOptions, bits: int) -> bool:
    """Whether inputs that are never negative are to be quantized to unsigned levels of this width.

    Below 8 bits alone: up to 127 they fit into int8, the only type that TensorRT computes in.
    """
    return bits < TENSORRT_BITS and options.unsigned is not False
