"""Reports which operations of a converted graph read integers, and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from dfq_plugins.types import Coverage, NumberFormat, QuantizedTensor
from dfq_torchao.capture import origin_of
from dfq_torchao.keeping import belongs_to
from dfq_torchao.observers import input_dependent
from dfq_torchao.operations import ACTIVATIONS, is_computation, is_dequantize, is_quantize, moves_values, short_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import GraphModule, Node

    from dfq_plugins.types import TensorRole
    from dfq_torchao.run import Run

_STORED_BITS = {"torch.int8": 8, "torch.uint8": 8, "torch.int16": 16, "torch.int32": 32}


def describe_coverage(converted: GraphModule, run: Run) -> Coverage:
    """List the operations that read integers, and those that read floating point, with the reason.

    Args:
        converted: the graph returned by `convert_pt2e`.
        run: the settings used to convert it.
    """
    dependent = input_dependent(converted)
    tensors: dict[tuple[str, TensorRole], QuantizedTensor] = {}
    quantized = set()
    for node in quantized_operations(converted):
        quantized.add(node)
        for source in _dequantized(node):
            role: TensorRole = "input" if source in dependent else "weight"
            if role == "input" or _is_weight(node, source):
                form = _number_format(source)
                tensors.setdefault((_name(node), role), QuantizedTensor(_name(node), short_name(node), role, form))
    floating = [
        (_name(node), _float_reason(node, run))
        for node in converted.graph.nodes
        if node in dependent and is_computation(node) and node not in quantized and not _is_fused(node, quantized)
    ]
    return Coverage(tuple(tensors.values()), tuple(dict(floating).items()))


def quantized_operations(converted: GraphModule) -> Iterator[Node]:
    """Yield the operations that read integers behind a change of format."""
    for node in converted.graph.nodes:
        if is_computation(node) and next(_dequantized(node), None) is not None:
            yield node


def _dequantized(node: Node) -> Iterator[Node]:
    """Yield the changes from integers that an operation reads, also through operations that only move a weight."""
    for source in node.all_input_nodes:
        reached = source
        while reached.op == "call_function" and moves_values(reached) and reached.all_input_nodes:
            if not _is_constant(reached):
                break
            reached = reached.all_input_nodes[0]
        if is_dequantize(reached):
            yield reached


def _is_constant(node: Node) -> bool:
    waiting = [node]
    while waiting:
        source = waiting.pop()
        if source.op == "placeholder":
            return False
        waiting += source.all_input_nodes
    return True


def _is_weight(node: Node, source: Node) -> bool:
    """Return whether a constant is the second operand of a layer; the third one is its bias."""
    bias = node.args[2] if len(node.args) > 2 else None  # noqa: PLR2004  (input, weight, bias)
    return source is not bias


def _name(node: Node) -> str:
    return origin_of(node) or node.name


def _number_format(dequantize: Node) -> NumberFormat:
    """Return the format that a node changes from; it takes scale, zero point, maybe an axis, lowest, highest, type."""
    per_channel = "per_channel" in short_name(dequantize)
    arguments: Any = dequantize.args[1:]
    scale, zero_point, *rest = arguments
    lowest, highest, dtype = rest[-3:] if per_channel else rest[:3]
    low, high = int(lowest), int(highest)
    signed = low < 0
    known = isinstance(scale, float) and isinstance(zero_point, int)
    bits = (high - low).bit_length()
    return NumberFormat(
        bits,
        signed=signed,
        symmetric=signed and (per_channel or bool(zero_point == 0)),
        per_channel=per_channel,
        stored_bits=max(bits, _STORED_BITS.get(str(dtype), bits)),
        range=_range(low, high, scale, zero_point) if known else None,
    )


def _range(low: int, high: int, scale: Any, zero_point: Any) -> tuple[float, float]:
    return (low - zero_point) * scale, (high - zero_point) * scale


def _is_fused(node: Node, quantized: set[Node]) -> bool:
    """Return whether a node is an activation between a quantized layer and the next change to integers.

    Compilers compute it inside the layer, on the sums before they are rounded.
    """
    if node.target not in ACTIVATIONS or not node.users or not all(is_quantize(user) for user in node.users):
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and source in quantized


def _float_reason(node: Node, run: Run) -> str:
    if belongs_to(node, run.options.keep_float):
        return "left out by the option keep_float"
    if moves_values(node):
        return "only moves values, in float, next to quantized layers"
    return f"the quantizer {run.options.quantizer!r} leaves {short_name(node)} in float in this place"
