"""Cleans an exported QONNX graph as `qonnx.util.cleanup.cleanup_model` does, in time that grows with the graph.

`cleanup_model` applies eight transformations, and after each of them five more. Each finds a tensor by a walk over the
whole graph, and most work on a copy with all weights, which takes longer than the export itself. Here tables take the
place of the walks, and each step runs once. The graph is the same, but for annotations "FLOAT32" on copied parameters,
which only repeat the default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import is_custom_op
from qonnx.transformation.quant_constant_folding import FoldTransposeIntoQuantInit

from dfq_plugins.network.outputs import OUTPUT
from dfq_plugins.quantization.onnx_runtime import exact_session, run_session

if TYPE_CHECKING:
    from collections.abc import Iterable

_DOMAIN = "qonnx.custom_op.general"
_QONNX_QUANTIZERS = frozenset(("Quant", "Trunc", "BipolarQuant"))
_KEPT = frozenset(("Quant", "BipolarQuant", "QuantizeLinear", "DequantizeLinear"))
_COMMUTATIVE = frozenset(("Add", "Mul", "And", "Or", "Xor", "Sum"))


def clean_qonnx(model: Any) -> Any:
    """Return the graph with constants folded, parameters of their own for each node, shapes inferred and names given.

    Args:
        model: the `onnx.ModelProto` that Brevitas exported; it is changed.
    """
    for node in model.graph.node:
        if node.op_type in _QONNX_QUANTIZERS:
            node.domain = _DOMAIN
    model = with_shapes(model)
    while fold_constants(model):
        model = with_shapes(model)  # a shape that is now known may tell further ones
    give_own_parameters(model.graph)
    if any(node.op_type == "Transpose" for node in model.graph.node):
        wrapper = ModelWrapper(model, fix_missing_initializer_valueinfo=False)
        model = wrapper.transform(FoldTransposeIntoQuantInit(), make_deepcopy=False, cleanup=False).model
    sort_by_depth(model.graph)
    put_parameters_last(model.graph)
    remove_unused(model.graph)
    rename_readably(model.graph)
    return model


def with_shapes(model: Any) -> Any:
    """Return the model with the shapes of what its nodes compute.

    ONNX does not know QONNX's operators. What they compute has the shape of their first input.
    """
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    for node in model.graph.node:
        if is_custom_op(node.domain):
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1]))
    inferred = onnx.shape_inference.infer_shapes(model)
    _replace(inferred.graph.node, nodes)
    return inferred


def fold_constants(model: Any) -> bool:
    """Store what nodes compute from constants alone, in place of these nodes; tell whether there were any.

    Quantizers stay, those of constants too: they say which integers a weight has.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    shapes = {value.name: _static_shape(value) for value in (*graph.input, *graph.value_info)}
    kept, folded = [], []
    for node in graph.node:
        if node.op_type == "Shape" and shapes.get(node.input[0]) is not None:
            shape = np.array(shapes[node.input[0]], dtype=np.int64)
            graph.initializer.append(numpy_helper.from_array(shape, node.output[0]))
            constants.add(node.output[0])
        elif node.op_type not in _KEPT and constants.issuperset(node.input):
            folded.append(node)
            constants.update(node.output)
        else:
            kept.append(node)
    if len(kept) == len(graph.node):
        return False
    needed = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    graph.initializer.extend(_computed(model, folded, needed))
    _replace(graph.node, kept)
    return True


def _computed(model: Any, nodes: list[Any], needed: set[str]) -> list[Any]:
    """Return the needed ones of the tensors that nodes compute from constants, which run together in one session."""
    wanted = [name for node in nodes for name in node.output if name in needed]
    if not wanted:
        return []
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = helper.make_graph(nodes, "constants", [], [onnx.ValueInfoProto(name=name) for name in wanted], constants)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    values = run_session(exact_session(part.SerializeToString()), {}, wanted)
    return [numpy_helper.from_array(value, name) for name, value in zip(wanted, values, strict=True)]


def give_own_parameters(graph: Any) -> None:
    """Copy each parameter that several nodes read, so that a flow can change that of one node."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = dict.fromkeys(stored, 0)
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in stored:
                if readers[name]:
                    copied = graph.initializer.add()
                    copied.CopyFrom(stored[name])
                    copied.name = node.input[position] = f"{name} ({readers[name]})"
                readers[name] += 1


def sort_by_depth(graph: Any) -> None:
    """Sort the nodes by the length of the longest path that leads to them, as qonnx does."""
    depths: dict[str, int] = {}
    keyed = []
    for node in graph.node:
        depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth))
        keyed.append((depth, node))
    _replace(graph.node, [node for _, node in sorted(keyed, key=lambda pair: pair[0])])


def put_parameters_last(graph: Any) -> None:
    """Let commutative nodes read what is computed first and parameters last."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _COMMUTATIVE:
            node.input[:] = sorted(node.input, key=constants.__contains__)


def remove_unused(graph: Any) -> None:
    """Remove parameters and descriptions of tensors that no node reads or computes, and inputs that are parameters."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    computed = {name for node in graph.node for name in node.output}
    stored = {tensor.name for tensor in graph.initializer}
    parameters = [tensor for tensor in graph.initializer if tensor.name in read]
    described = [value for value in graph.value_info if value.name in computed]
    described += [helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in parameters]
    inputs = [value for value in graph.input if value.name not in stored]
    _replace(graph.input, inputs)
    _replace(graph.initializer, parameters)
    _replace(graph.value_info, described)


def rename_readably(graph: Any) -> None:
    """Name nodes by their operator and tensors by their node, as qonnx and FINN do; outputs with names keep them."""
    counts: dict[str, int] = {}
    names: dict[str, str] = {}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        node.name = f"{node.op_type}_{counts.setdefault(node.op_type, 0)}"
        counts[node.op_type] += 1
        names |= {name: f"{node.name}_out{index}" for index, name in enumerate(node.output) if name}
        parameters = [name for name in node.input if name in constants]
        names |= {name: f"{node.name}_param{index}" for index, name in enumerate(parameters)}
    # Several inputs keep the names of the specification: their users have to tell them apart.
    inputs = graph.input if len(graph.input) == 1 else ()
    for kind, values in (("global_in", inputs), ("global_out", graph.output)):
        names |= {value.name: f"{kind}_{index}" if index else kind for index, value in enumerate(values)}
    if [value.name for value in graph.output] != [OUTPUT]:
        names |= {value.name: value.name for value in graph.output}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.name = names.get(item.name, item.name)


def _static_shape(value: Any) -> list[int] | None:
    kind = value.type.tensor_type
    sizes = [axis.dim_value for axis in kind.shape.dim if axis.HasField("dim_value")]
    return sizes if kind.HasField("shape") and len(sizes) == len(kind.shape.dim) else None


def _replace(field: Any, items: Iterable[Any]) -> None:
    """Set a repeated field to items, which may be some of its own."""
    kept = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(kept)
