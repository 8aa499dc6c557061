"""Reports how each tensor of a quantized graph is stored, read back from the layers' quantizers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.additions import Shortcut, is_addition
from dfq_brevitas.bias import is_weight_layer
from dfq_brevitas.finn.modules import ChannelSelection, Concatenation
from dfq_brevitas.foreign import Dequantize
from dfq_brevitas.framework import ActQuantProxyFromInjectorBase, GraphModule, Node, quant_nn
from dfq_brevitas.grid import OnGrid
from dfq_brevitas.isolation import PlainCall, PlainModule
from dfq_brevitas.quantizers import FLOAT_BITS, LAYERS
from dfq_plugins.types import Coverage, NumberFormat, QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfq_plugins.types import Recipe

_ADDITION = "addition"
_LOGITS = "the network's output keeps the accumulator's precision"


def describe_coverage(graph: GraphModule, recipe: Recipe) -> Coverage:
    """List weights, layer inputs and quantized activations with their formats, and what stays in float and why."""
    quantized: list[QuantizedTensor] = []
    floating: list[tuple[str, str]] = []
    seen: set[object] = set()
    for node in graph.graph.nodes:
        if node.op != "call_module" or node.target in seen:
            continue
        seen.add(node.target)
        name, module = str(node.target), graph.get_submodule(str(node.target))
        if is_weight_layer(module):
            quantized += _layer_tensors(name, module, _reading_quantizer(graph, node))
        elif _own_quantizer(module) is not None:
            form = number_format(_own_quantizer(module))
            quantized.append(QuantizedTensor(name, _kind(node, module), "activation", form))
        elif not isinstance(module, (Dequantize, OnGrid, Shortcut, ChannelSelection, Concatenation)):
            floating.append((name, _why_float(module, recipe)))
    return Coverage(tuple(quantized), (*floating, ("(output)", _LOGITS)))


def _why_float(module: nn.Module, recipe: Recipe) -> str:
    if isinstance(module, (PlainCall, PlainModule)):
        return module.reason
    reason = "Brevitas has no quantizer for it in graph mode"
    if isinstance(module, LAYERS):
        reason = "the first and the last layer keep float weights"
    elif recipe.activation_bits == FLOAT_BITS:
        reason = "activations stay in float"
    return f"{type(module).__name__}: {reason}"


def _layer_tensors(name: str, layer: Any, reading: Any | None) -> Iterator[QuantizedTensor]:
    kind = type(layer).__name__
    if layer.weight_quant.is_quant_enabled:
        yield QuantizedTensor(name, kind, "weight", number_format(layer.weight_quant))
    if reading is not None:
        yield QuantizedTensor(name, kind, "input", number_format(reading))


def _own_quantizer(module: nn.Module) -> Any | None:
    """Return the enabled activation quantizer of a module, if it has one."""
    quantizer = getattr(module, "act_quant", None)
    enabled = isinstance(quantizer, ActQuantProxyFromInjectorBase) and quantizer.is_quant_enabled
    return quantizer if enabled else None


def _reading_quantizer(graph: GraphModule, node: Node) -> Any | None:
    """Return the quantizer whose output a layer reads, directly or through max pooling and moved values."""
    source = node.all_input_nodes[0]
    while source.op == "call_module":
        module = graph.get_submodule(str(source.target))
        quantizer = _own_quantizer(module)
        if quantizer is not None:
            return quantizer
        if not isinstance(module, (nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Dropout, nn.Flatten)):
            return None
        source = source.all_input_nodes[0]
    if source.op in ("call_method", "call_function") and len(source.all_input_nodes) == 1:
        return _reading_quantizer(graph, source)
    return None


def _kind(node: Node, module: nn.Module) -> str:
    """Name the module; for an inserted quantizer, add what it feeds or reads."""
    kind = type(module).__name__
    if not isinstance(module, quant_nn.QuantIdentity):
        return kind
    if node.all_input_nodes[0].op == "placeholder":
        return f"{kind} (network input)"
    return f"{kind} ({_ADDITION})" if any(map(is_addition, node.users)) else kind


def number_format(quantizer: Any) -> NumberFormat:
    """Return the format of a quantizer's integers; Brevitas and QONNX store any bit width natively."""
    bits, scale, signed = int(quantizer.bit_width()), quantizer.scale(), bool(quantizer.is_signed)
    per_channel = scale.numel() > 1
    form = NumberFormat(bits, signed, symmetric=True, per_channel=per_channel, stored_bits=bits)
    return form if per_channel else replace(form, range=_value_range(quantizer, bits, scale.item()))


def _value_range(quantizer: Any, bits: int, scale: float) -> tuple[float, float]:
    """Return the lowest and highest value of a quantizer with one scale."""
    if bits == 1:
        return -scale, scale
    highest = 2 ** (bits - bool(quantizer.is_signed)) - 1
    lowest = -highest - (not quantizer.is_narrow_range) if quantizer.is_signed else 0
    return lowest * scale, highest * scale
