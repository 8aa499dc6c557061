"""Fine-tuning of fake-quantized modules: trains weights and ranges, and turns ranges into exportable constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.quantization.notices import silenced
from dfq_pytorch_quantization.framework import Clip
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from dfq_pytorch_quantization.ranges import SMALLEST_AMAX, calibrated_inputs
from dfq_pytorch_quantization.residual import ResidualQuantizer
from dfq_pytorch_quantization.swap import quantized_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from dfq_pytorch_quantization.options import PytorchQuantizationOptions


def start_training(prepared: nn.Module, options: PytorchQuantizationOptions) -> None:
    """Make weights, biases, and BatchNorm's scale and shift trainable, and ranges as the options say.

    A known range of the network's input stays fixed, and so do the ranges of residual shortcuts, which have 8 bits:
    their two limits would be learned apart, and the exported range is symmetric.

    Args:
        prepared: a calibrated model; changed in place.
        options: whether activation ranges are learned, and whether weight ranges follow the weights.
    """
    prepared.requires_grad_(requires_grad=True)
    if options.learned_ranges:
        for _, module in calibrated_inputs(prepared):
            fixed = isinstance(module, ResidualQuantizer) or _off(module.input_quantizer)
            if module.input_quantizer.amax is not None and not fixed:
                _learn_range(module.input_quantizer)
    if options.training_weights == "follow":
        for quantizer in _weight_quantizers(prepared):
            del quantizer._amax  # noqa: SLF001  (without a range, the framework computes it from the weight each time)


def learned_ranges(prepared: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the limits of all learned ranges."""
    for quantizer in _learning(prepared):
        yield from (end for end in quantizer.clip.parameters() if end.requires_grad)


@torch.no_grad()
def fix_ranges_after_training(prepared: nn.Module) -> None:
    """Turn learned ranges into fixed ones, in place; does nothing if no ranges were learned."""
    for quantizer in list(_learning(prepared)):
        highest = torch.max(-quantizer.clip.clip_value_min, quantizer.clip.clip_value_max)
        quantizer.amax.copy_(highest.clamp(min=SMALLEST_AMAX))
        quantizer._learn_amax = False  # noqa: SLF001  (no public access)
        del quantizer.clip
    for name, module in quantized_modules(prepared):
        quantizer = getattr(module, "weight_quantizer", None)
        if name and quantizer is not None and quantizer.amax is None and not _off(quantizer):
            quantizer.register_buffer("_amax", quantizer._get_amax(module.weight).clamp(min=SMALLEST_AMAX))  # noqa: SLF001


def _learn_range(quantizer: Any) -> None:
    """Let the framework's `Clip` learn the range, starting from the calibrated one.

    The framework takes the larger limit as the range. For unsigned integers, the lower limit is therefore fixed at
    zero; otherwise the range could never shrink.
    """
    highest = float(quantizer.amax)
    with silenced(NOTICES, logger=LOGGER):
        quantizer.clip = Clip(-highest, highest, learn_min=True, learn_max=True).to(quantizer.amax.device)
        if quantizer.unsigned:
            quantizer.clip.clip_value_min.requires_grad_(requires_grad=False).zero_()
        with torch.enable_grad():  # warns, once per process, that it is experimental
            quantizer.clip(quantizer.amax).backward()
        quantizer.clip.zero_grad()
    quantizer._learn_amax = True  # noqa: SLF001  (no public access)


def _learning(model: nn.Module) -> Iterator[Any]:
    for _, module in quantized_modules(model):
        if module.input_quantizer._learn_amax:  # noqa: SLF001  (no public access)
            yield module.input_quantizer


def _weight_quantizers(model: nn.Module) -> Iterator[Any]:
    for _, module in quantized_modules(model):
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.amax is not None and not _off(quantizer):
            yield quantizer


def _off(quantizer: Any) -> bool:
    return bool(quantizer._disabled)  # noqa: SLF001  (no public access)
