"""Fine-tuning of fake-quantized modules: trains weights and ranges, and turns ranges into exportable constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_shared.tensorrt.learned_range import CLIP, LearnedRange, clip_to_learned, learned_range
from dfq_shared.tensorrt.quantizers import calibrated_inputs, is_active, quantized_modules
from dfq_shared.tensorrt.ranges import SMALLEST_AMAX
from dfq_shared.tensorrt.residual import ResidualQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from dfq_shared.tensorrt.options import RangeOptions


def start_training(prepared: nn.Module, options: RangeOptions) -> None:
    """Make weights, biases, and BatchNorm's scale and shift trainable, and ranges as the options say.

    A known range of the network's input stays fixed, and so do the ranges of residual shortcuts, which have 8 bits.

    Args:
        prepared: a calibrated model; changed in place.
        options: whether activation ranges are learned, and whether weight ranges follow the weights.
    """
    prepared.requires_grad_(requires_grad=True)
    if options.learned_ranges:
        for _, module in calibrated_inputs(prepared):
            fixed = isinstance(module, ResidualQuantizer) or not is_active(module.input_quantizer)
            if module.input_quantizer.amax is not None and not fixed:
                _learn_range(module.input_quantizer)
    if options.training_weights == "follow":
        for quantizer in _weight_quantizers(prepared):
            del quantizer._amax  # noqa: SLF001  (without a range, the framework computes it from the weight each time)


def learned_ranges(prepared: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the limits of all learned ranges."""
    for _, limits in _learning(prepared):
        yield from (end for end in limits.parameters() if end.requires_grad)


@torch.no_grad()
def fix_ranges_after_training(prepared: nn.Module) -> None:
    """Turn learned ranges into fixed ones, in place; does nothing if no ranges were learned."""
    for quantizer, limits in list(_learning(prepared)):
        quantizer._buffers["_amax"] = limits.highest  # noqa: SLF001  (its setter copies)
        del quantizer.clip
    for name, module in quantized_modules(prepared):
        quantizer = getattr(module, "weight_quantizer", None)
        if name and quantizer is not None and quantizer.amax is None and is_active(quantizer):
            quantizer.register_buffer("_amax", quantizer._get_amax(module.weight).clamp(min=SMALLEST_AMAX))  # noqa: SLF001


def _learn_range(quantizer: Any) -> None:
    """Learn the range, starting from the calibrated one.

    The lowest level of a signed range, which has no counterpart above, is given up: clipping never reaches it.
    """
    quantizer.narrow_range = not quantizer.unsigned
    quantizer.add_module(CLIP, LearnedRange(quantizer.amax, unsigned=quantizer.unsigned))
    quantizer.register_forward_pre_hook(clip_to_learned)


def _learning(model: nn.Module) -> Iterator[tuple[Any, LearnedRange]]:
    for _, module in quantized_modules(model):
        limits = learned_range(module.input_quantizer)
        if limits is not None:
            yield module.input_quantizer, limits


def _weight_quantizers(model: nn.Module) -> Iterator[Any]:
    for _, module in quantized_modules(model):
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.amax is not None and is_active(quantizer):
            yield quantizer
