"""Reads off a quantized graph how each operator computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from dfq_onnxruntime.float_nodes import module_name
from dfq_plugins.quantization.onnx_graph import GraphIndex
from dfq_plugins.types import Coverage, NumberFormat, QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    Array = np.ndarray[Any, Any]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

MOVES = frozenset(
    {
        *(QUANTIZE, DEQUANTIZE, "Constant", "ConstantOfShape", "Shape", "Cast", "Identity", "Flatten", "Reshape"),
        *("Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Concat", "Expand", "Pad", "Relu", "Clip"),
    }
)
"""Operators without arithmetic of their own: they are quantized where what they read is."""

_CLIPPING = frozenset({"Relu", "Clip"})

_SHAPES = frozenset({"Shape", "Size", "ConstantOfShape"})

_BITS = {
    TensorProto.INT4: (4, True),
    TensorProto.UINT4: (4, False),
    TensorProto.INT8: (8, True),
    TensorProto.UINT8: (8, False),
    TensorProto.INT16: (16, True),
    TensorProto.UINT16: (16, False),
}

_REDUCED = 64
"""Largest absolute value of 7-bit weights, which ONNX Runtime stores in 8 bits."""


def read_coverage(program: bytes, operators: Collection[str], left_out: Mapping[str, str]) -> Coverage:
    """Return the number format of the inputs and weights of each operator, and the operators in float.

    Args:
        program: the quantized program.
        operators: the operators that were quantized; others compute in float, even between quantized tensors.
        left_out: why nodes were left out, by name.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(program)).graph
    index = GraphIndex(graph)
    computed = _float_results(graph)
    formats = dict(_formats(index))
    names = _layer_names(graph)
    quantized, floating = [], []
    for node in graph.node:
        if node.op_type in MOVES or computed.isdisjoint(node.output):
            continue
        read = [name for name in node.input if name in formats]
        weighted = node.op_type in WEIGHTED and len(node.input) > 1
        wanted = node.input[:2] if weighted else _values(index, node)
        read = read if node.op_type in operators and (weighted or _rounded(index, node)) else []
        if read and all(name in formats for name in wanted):
            quantized += list(_tensors(index, node, names[node.name], formats))
        elif wanted:
            reason = left_out.get(node.name, "ONNX Runtime computes it in float")
            floating.append((names[node.name], f"{node.op_type}: {reason}"))
    return Coverage(tuple(quantized), tuple(floating))


def _rounded(index: GraphIndex, node: Any) -> bool:
    """Return whether the result of a node is quantized, so that it may run in integers."""
    readers = [reader for name in node.output for reader in index.readers.get(name, ())]
    return any(r.op_type == QUANTIZE or (r.op_type in _CLIPPING and _rounded(index, r)) for r in readers)


def _float_results(graph: Any) -> set[str]:
    """Return the floating-point tensors that depend on the values of an input, and not only on its shape."""
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    stored = {tensor.name for tensor in graph.initializer}
    reached = {value.name for value in graph.input} - stored
    found: set[str] = set()
    for node in graph.node:
        if node.op_type not in _SHAPES and not reached.isdisjoint(node.input):
            reached.update(node.output)
            found |= {name for name in node.output if types.get(name, TensorProto.FLOAT) == TensorProto.FLOAT}
    return found


def _values(index: GraphIndex, node: Any) -> list[str]:
    """Return the computed inputs of a node; shapes and stored numbers are none."""
    return [name for name in node.input if name and name not in index.initializers and index.constant(name) is None]


def _tensors(index: GraphIndex, node: Any, name: str, formats: Mapping[str, NumberFormat]) -> Iterator[QuantizedTensor]:
    """Yield the weight and the input of a node."""
    weighted = node.op_type in WEIGHTED
    if weighted and index.producers[node.input[1]].input[0] in index.initializers:
        yield QuantizedTensor(name, node.op_type, "weight", formats[node.input[1]])
    first = next(tensor for tensor in node.input if tensor in formats)
    yield QuantizedTensor(name, node.op_type, "input", formats[first])


def _layer_names(graph: Any) -> dict[str, str]:
    """Return what reports call each node: the module that it computes, if there is only one such node, or itself."""
    owners: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type not in MOVES:
            owners.setdefault(module_name(node.name), []).append(node)
    names = {}
    for owner, nodes in owners.items():
        weighted = [node for node in nodes if node.op_type in WEIGHTED]
        main = weighted[0] if len(weighted) == 1 else nodes[0] if len(nodes) == 1 else None
        for node in nodes:
            names[node.name] = owner if owner and node is main else node.name
    return names


def _formats(index: GraphIndex) -> Iterator[tuple[str, NumberFormat]]:
    for node in index.nodes_of(DEQUANTIZE):
        scale = index.constant(node.input[1])
        zero = index.initializers.get(node.input[2]) if len(node.input) > 2 else None  # noqa: PLR2004
        if scale is not None and zero is not None and zero.data_type in _BITS:
            points = index.constant(node.input[2])
            assert points is not None  # noqa: S101  it is an initializer
            yield node.output[0], _format(scale, points.astype(np.int64), zero.data_type, index, node.input[0])


def _format(scale: Array, zeros: Array, kind: int, index: GraphIndex, integers: str) -> NumberFormat:
    bits, signed = _BITS[kind]
    stored = index.constant(integers)
    used = bits
    if stored is not None and kind == TensorProto.INT8 and np.abs(stored.astype(np.int64)).max(initial=0) <= _REDUCED:
        used = 7
    per_channel = scale.size > 1
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = None
    if not per_channel and stored is None:
        step, zero = float(scale.ravel()[0]), int(zeros.ravel()[0])
        ends = ((lowest - zero) * step, (highest - zero) * step)
    symmetric = not zeros.any()
    return NumberFormat(used, signed, symmetric=symmetric, per_channel=per_channel, stored_bits=bits, range=ends)
