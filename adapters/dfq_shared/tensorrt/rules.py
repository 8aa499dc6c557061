"""Checks an ONNX file against TensorRT's rules for explicit quantization, without TensorRT.

The rules come from NVIDIA's developer guide, "Working with Quantized Types", sections "Explicit Quantization" and "Q/DQ
Layer-Placement Recommendations", and from the pages on the Quantize and Dequantize operators. Each rule is a function
of the graph that yields its findings; TensorRT can run the quantized parts of a file without findings in int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dfq_plugins.quantization.onnx_graph import GraphIndex, attribute, label
from dfq_shared.tensorrt.operators import DEQUANTIZE, QUANTIZE, WEIGHTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rule = Callable[[GraphIndex], Iterator["Finding"]]

LEAST_OPSET = 13
"""The first opset whose QuantizeLinear has an axis, for one scale per channel."""

ELEMENTWISE = frozenset({"Add", "Sub", "Sum", "Max", "Min"})
"""Operators that need the same scale for two int8 tensors."""


@dataclass(frozen=True)
class Finding:
    """One place where a file breaks a rule.

    Args:
        rule: name of the rule.
        node: name of the node.
        detail: what is wrong, and what the rule requires.
    """

    rule: str
    node: str
    detail: str

    def __str__(self) -> str:
        return f"{self.node}: {self.detail} ({self.rule})"


def check_rules(model: Any) -> tuple[Finding, ...]:
    """Return all findings of all rules for an `onnx.ModelProto`, in the order of `RULES`."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    index = GraphIndex(model.graph)
    findings = [finding for rule in RULES.values() for finding in rule(index)]
    if opset < LEAST_OPSET:
        detail = f"opset {opset} does not support one scale per channel; opset {LEAST_OPSET} or later is needed"
        findings.insert(0, Finding("opset", "the model", detail))
    return tuple(findings)


def pairs(index: GraphIndex) -> Iterator[Finding]:
    """Each QuantizeLinear feeds only DequantizeLinear, which reads a QuantizeLinear or a stored int8 tensor."""
    for node in index.nodes_of(QUANTIZE):
        readers = index.readers.get(node.output[0], ())
        if not readers:
            yield Finding("pairs", label(node), "nothing reads its integers; a DequantizeLinear must")
        for reader in readers:
            if reader.op_type != DEQUANTIZE:
                yield Finding("pairs", label(node), f"feeds {label(reader)}, which is not a DequantizeLinear")
        if node.output[0] in index.outputs:
            yield Finding(
                "pairs", label(node), "its integers are an output of the model; a DequantizeLinear must follow"
            )
    for node in index.nodes_of(DEQUANTIZE):
        source = index.producers.get(node.input[0])
        stored = index.constant(node.input[0])
        if not (source is not None and source.op_type == QUANTIZE) and (stored is None or stored.dtype != np.int8):
            yield Finding("pairs", label(node), "reads neither a QuantizeLinear nor a stored int8 tensor")
        if not index.readers.get(node.output[0]) and node.output[0] not in index.outputs:
            yield Finding("pairs", label(node), "nothing reads its values")


def scales(index: GraphIndex) -> Iterator[Finding]:
    """Scales are constant, positive and finite, and a pair has one scale."""
    for node in index.nodes_of(QUANTIZE, DEQUANTIZE):
        scale = index.constant(node.input[1])
        if scale is None:
            yield Finding("scales", label(node), f"its scale {node.input[1]!r} is computed; it must be constant")
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield Finding(
                "scales", label(node), f"its lowest scale is {scale.min()}; scales must be positive and finite"
            )
        source = index.producers.get(node.input[0])
        if node.op_type == DEQUANTIZE and scale is not None and source is not None and source.op_type == QUANTIZE:
            other = index.constant(source.input[1])
            same_axis = scale.ndim == 0 or _axis(source) == _axis(node)
            if other is None or not np.array_equal(other, scale) or not same_axis:
                yield Finding("scales", label(node), f"has a different scale or axis than {label(source)}")


def zero_points(index: GraphIndex) -> Iterator[Finding]:
    """Zero points are constant, int8 and 0; without one, QuantizeLinear writes uint8."""
    for node in index.nodes_of(QUANTIZE, DEQUANTIZE):
        if len(node.input) < 3 or not node.input[2]:  # noqa: PLR2004  (values, scale, zero point)
            if node.op_type == QUANTIZE:
                yield Finding(
                    "zero points", label(node), "has no zero point, so it writes uint8; int8 zeros are needed"
                )
            continue
        zero = index.constant(node.input[2])
        if zero is None:
            yield Finding("zero points", label(node), "its zero point is computed; it must be constant")
        elif zero.dtype != np.int8:
            yield Finding("zero points", label(node), f"its zero point is {zero.dtype}; int8 is needed")
        elif zero.any():
            yield Finding(
                "zero points", label(node), f"its zero point is {zero.flat[np.flatnonzero(zero)[0]]}; 0 is needed"
            )


def weighted_inputs(index: GraphIndex) -> Iterator[Finding]:
    """A layer with a quantized weight has a quantized input, and the other way around."""
    for node in index.nodes_of(*WEIGHTED):
        data, weight = (_is_dequantized(index, name) for name in node.input[:2])
        stored = index.constant(index.source(node.input[1])[0]) is not None
        if weight and not data:
            yield Finding(
                "weighted inputs", label(node), f"its input {node.input[0]!r} arrives in float, its weight in int8"
            )
        if data and stored and not weight and node.op_type != "MatMul":
            yield Finding("weighted inputs", label(node), "its weight is stored in float, its input arrives in int8")


def weights(index: GraphIndex) -> Iterator[Finding]:
    """Weights are quantized directly from a stored tensor, with one scale or one per channel."""
    for node in index.nodes_of(*WEIGHTED):
        dequantize = index.source_node(node.input[1])
        quantize = None if dequantize is None else index.producers.get(dequantize.input[0])
        if quantize is None or quantize.op_type != QUANTIZE or _is_activation(index, node):
            continue
        if index.constant(quantize.input[0]) is None:
            yield Finding(
                "weights", label(node), f"its weight {quantize.input[0]!r} is computed before {label(quantize)}"
            )


def channel_axes(index: GraphIndex) -> Iterator[Finding]:
    """Per-channel scales run along the output channels of a weight; activations have one scale."""
    expected = {}
    for node in index.nodes_of(*WEIGHTED):
        name, passed = index.source(node.input[1])
        dequantize = index.producers.get(name)
        if dequantize is not None and dequantize.op_type == DEQUANTIZE:
            expected[dequantize.output[0]] = (node, passed)
    for dequantize in index.nodes_of(DEQUANTIZE):
        scale = index.constant(dequantize.input[1])
        if scale is None or scale.size == 1:
            continue
        stored = _stored_weight(index, dequantize)
        if stored is None or dequantize.output[0] not in expected:
            yield Finding(
                "channel axes", label(dequantize), f"has {scale.size} scales; only weights may have more than one"
            )
            continue
        node, passed = expected[dequantize.output[0]]
        wanted, axis = _output_axis(node, passed, stored.ndim), _axis(dequantize) % stored.ndim
        if axis != wanted:
            detail = f"its weight has scales along axis {axis}; {node.op_type} has its output channels on axis {wanted}"
            yield Finding("channel axes", label(node), detail)
        elif stored.shape[axis] != scale.size:
            detail = f"its weight has {scale.size} scales for {stored.shape[axis]} channels"
            yield Finding("channel axes", label(node), detail)


def shared_scales(index: GraphIndex) -> Iterator[Finding]:
    """Int8 tensors that are concatenated or added have one scale, so that TensorRT need not rescale one of them."""
    for node in index.nodes_of("Concat", *ELEMENTWISE):
        sources = [index.source_node(name) for name in node.input]
        found = [
            index.constant(source.input[1]) for source in sources if source is not None and source.op_type == DEQUANTIZE
        ]
        if len(found) == len(node.input) and not all(np.array_equal(found[0], other) for other in found[1:]):  # type: ignore[arg-type]
            values = ", ".join(sorted({f"{float(scale.max()):.6g}" for scale in found if scale is not None}))
            yield Finding("shared scales", label(node), f"its int8 inputs have the scales {values}; one is needed")


RULES: dict[str, Rule] = {
    "pairs": pairs,
    "scales": scales,
    "zero points": zero_points,
    "weighted inputs": weighted_inputs,
    "weights": weights,
    "channel axes": channel_axes,
    "shared scales": shared_scales,
}
"""The rules by name."""


def residual_additions(model: Any) -> tuple[int, int]:
    """Count the additions to a layer's output that TensorRT can fuse with the layer in int8, and all such additions.

    An addition can be fused if its other input comes from a DequantizeLinear.

    Returns:
        Number of additions that fuse, and their total number.
    """
    index = GraphIndex(model.graph)
    fused = total = 0
    for node in index.nodes_of("Add"):
        if any(index.constant(name) is not None for name in node.input):
            continue  # a bias
        from_layer = [_is_layer_output(index, name) for name in node.input]
        if any(from_layer):
            total += 1
            fused += any(
                _is_dequantized(index, other)
                for other, onto in zip(node.input, reversed(from_layer), strict=True)
                if onto
            )
    return fused, total


def _axis(node: Any) -> int:
    return int(attribute(node, "axis", 1))


def _is_dequantized(index: GraphIndex, name: str) -> bool:
    node = index.source_node(name)
    return node is not None and node.op_type == DEQUANTIZE


def _is_activation(index: GraphIndex, node: Any) -> bool:
    """Return whether both inputs of a MatMul are computed, e.g. the product of queries and keys."""
    return node.op_type == "MatMul" and _stored_behind(index, node.input[1]) is None


def _stored_behind(index: GraphIndex, name: str) -> np.ndarray[Any, Any] | None:
    dequantize = index.source_node(name)
    return None if dequantize is None or dequantize.op_type != DEQUANTIZE else _stored_weight(index, dequantize)


def _stored_weight(index: GraphIndex, dequantize: Any) -> np.ndarray[Any, Any] | None:
    """Return the stored tensor that a DequantizeLinear reads, directly or through its QuantizeLinear."""
    source = index.producers.get(dequantize.input[0])
    return index.constant(source.input[0] if source is not None and source.op_type == QUANTIZE else dequantize.input[0])


def _output_axis(node: Any, passed: list[Any], rank: int) -> int:
    """Return the output channel axis in a stored weight, before the transpositions in `passed`."""
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "ConvTranspose":
        axis = 1
    elif node.op_type == "Gemm":
        axis = 0 if attribute(node, "transB", 0) else 1
    else:
        axis = rank - 1
    for transpose in passed:
        if transpose.op_type == "Transpose":
            axis = attribute(transpose, "perm", list(range(rank))[::-1])[axis]
    return axis


def _is_layer_output(index: GraphIndex, name: str) -> bool:
    """Return whether a tensor is the output of a convolution or linear layer, with its BatchNorm and bias."""
    node = index.source_node(name, frozenset({"BatchNormalization", "Identity"}))
    if node is not None and node.op_type == "Add" and any(index.constant(other) is not None for other in node.input):
        computed = next((other for other in node.input if index.constant(other) is None), None)
        node = None if computed is None else index.producers.get(computed)
    return node is not None and node.op_type in WEIGHTED and _is_dequantized(index, node.input[1])
