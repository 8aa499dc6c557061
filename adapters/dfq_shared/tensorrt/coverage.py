"""Reports how each module of a fake-quantized model computes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dfq_plugins.types import Coverage, NumberFormat, QuantizedTensor
from dfq_shared.tensorrt.quantizers import is_active, is_integer, is_quantized, is_quantizer, quantized_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from dfq_shared.tensorrt.backend import Backend

FUNCTIONS = (
    "(functions)",
    "other additions, concatenations, activations, functional pooling: the framework only quantizes inputs of modules",
)


STORED_BITS = 8
"""Width of the integers in the ONNX file, regardless of how much of their range is used."""


def describe_coverage(model: nn.Module, backend: Backend, *, pooling: bool) -> Coverage:
    """Return the number format of every quantized tensor, and the reason why every other module stays in float."""
    modules = [(name, module) for name, module in quantized_modules(model) if is_active(module.input_quantizer)]
    tensors = tuple(tensor for name, module in modules for tensor in _tensors(name, module))
    return Coverage(tensors, (*_floating(model, backend, pooling=pooling), FUNCTIONS))


def _tensors(name: str, module: Any) -> Iterator[QuantizedTensor]:
    kind, weight = type(module).__name__, getattr(module, "weight_quantizer", None)
    if weight is not None:
        yield QuantizedTensor(name, kind, "weight", number_format(weight))
    yield QuantizedTensor(name, kind, "input", number_format(module.input_quantizer))


def number_format(quantizer: Any) -> NumberFormat:
    """Return the format of a quantizer's levels; its range is None before calibration."""
    per_channel = quantizer.axis is not None
    signed, exponent = not quantizer.unsigned, 0
    if is_integer(quantizer):
        bits = int(quantizer.num_bits)
    else:
        exponent, bits = quantizer.num_bits[0], 1 + sum(quantizer.num_bits)
    form = NumberFormat(bits, signed, True, per_channel, STORED_BITS, exponent_bits=exponent)
    if quantizer.amax is None or per_channel:
        return form
    highest = quantizer.amax.item()
    return replace(form, range=(-highest if signed else 0.0, highest))


def _floating(model: nn.Module, backend: Backend, *, pooling: bool) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if is_quantized(module):
            if not is_active(module.input_quantizer):
                yield name, f"{type(module).__name__}: its forward never ran during calibration"
        elif not is_quantizer(module):
            reason = backend.reason_for_float(module, pooling=pooling)
            if reason is not None:
                yield name, reason
