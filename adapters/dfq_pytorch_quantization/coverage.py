"""Says how each module of a fake-quantized model computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfq_plugins.types import Coverage, QuantizedLayer
from dfq_pytorch_quantization.framework import quant_nn
from dfq_pytorch_quantization.swap import is_quantized, quantized_modules, reason_for_float

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

FUNCTIONS = (
    "(functions)",
    "other additions, concatenations, activations, functional pooling: the framework quantizes inputs of modules alone",
)


def describe_coverage(model: nn.Module, *, pooling: bool) -> Coverage:
    """Return the number format of every quantized module, and every other module with the reason for float."""
    rows = tuple(_row(name, module) for name, module in quantized_modules(model) if _active(module.input_quantizer))
    return Coverage(rows, (*_floating(model, pooling=pooling), FUNCTIONS))


def _active(quantizer: Any) -> bool:
    return not quantizer._disabled  # noqa: SLF001  (no public access)


def _row(name: str, module: Any) -> QuantizedLayer:
    weight = getattr(module, "weight_quantizer", None)
    kind = type(module).__name__
    return QuantizedLayer(
        name, kind, None if weight is None else number_format(weight), number_format(module.input_quantizer)
    )


def number_format(quantizer: Any) -> str:
    """Return the format of a quantizer's integers in words, e.g. `'uint4 per tensor, amax 2.64'`."""
    integer = f"{'u' if quantizer.unsigned else ''}int{quantizer.num_bits}"
    amax = quantizer.amax
    if amax is None:
        return f"{integer}, not calibrated"
    if quantizer.axis is None:
        return f"{integer} per tensor, amax {amax.item():.4g}"
    return f"{integer} per channel, amax {amax.min().item():.4g} to {amax.max().item():.4g}"


def _floating(model: nn.Module, *, pooling: bool) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if is_quantized(module):
            if not _active(module.input_quantizer):
                yield name, f"{type(module).__name__}: its forward never ran during calibration"
        elif not isinstance(module, quant_nn.TensorQuantizer):
            reason = reason_for_float(module, pooling=pooling)
            if reason is not None:
                yield name, reason
