"""The clean-up of exported QONNX graphs: the same graph as from `qonnx.util.cleanup.cleanup_model`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model

from dfq_brevitas.qonnx_cleanup import clean_qonnx

QONNX = "qonnx.custom_op.general"


def _parameters(**values: Any) -> list[Any]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def _quant(tensor: str, output: str) -> Any:
    attributes = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    return helper.make_node("Quant", [tensor, "scale", "zero", "bits"], [output], domain=QONNX, **attributes)


def _model(nodes: list[Any], parameters: list[Any], *, as_inputs: bool = True) -> Any:
    values = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 4])]
    if as_inputs:  # as TorchScript's exporter writes them for Brevitas
        read = {name for node in nodes for name in node.input}
        stored = [tensor for tensor in parameters if tensor.name in read]
        values += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in stored]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "graph", values, outputs, parameters)
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(QONNX, 2)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


SCALES = {"scale": np.float32(0.5), "zero": np.float32(0), "bits": np.float32(8)}


def _with_a_transposed_weight() -> Any:
    nodes = [
        _quant("input", "q"),
        _quant("weight", "w"),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["q", "t"], ["m"]),
        helper.make_node("Add", ["bias", "m"], ["sum"]),
        _quant("sum", "output"),
    ]
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    return _model(nodes, _parameters(weight=weight, bias=bias, unused=bias, **SCALES))


def _with_a_computed_shape() -> Any:
    nodes = [
        _quant("input", "q"),
        helper.make_node("Shape", ["q"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], axis=0),
        helper.make_node("Constant", [], ["rest"], value=numpy_helper.from_array(np.array([-1], dtype=np.int64))),
        helper.make_node("Concat", ["batch", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["q", "sizes"], ["flat"]),
        helper.make_node("Shape", ["flat"], ["flat_shape"]),
        helper.make_node("Cast", ["flat_shape"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["floats"], ["size"], keepdims=0),
        helper.make_node("Div", ["flat", "size"], ["output"]),
    ]
    return _model(nodes, _parameters(first=np.array([0], dtype=np.int64), **SCALES), as_inputs=False)


@pytest.mark.parametrize("make", [_with_a_transposed_weight, _with_a_computed_shape])
def test_the_graph_is_the_one_of_qonnx(make: Any) -> None:
    raw = make()
    expected = cleanup_model(ModelWrapper(copy.deepcopy(raw))).model.graph
    found = clean_qonnx(raw).graph
    assert list(found.node) == list(expected.node)
    assert list(found.input) == list(expected.input)
    assert list(found.output) == list(expected.output)
    for field in ("initializer", "value_info"):
        values, others = ({item.name: item for item in getattr(graph, field)} for graph in (found, expected))
        assert values == others


def test_quantizers_of_constants_stay() -> None:
    kinds = [node.op_type for node in clean_qonnx(_with_a_transposed_weight()).graph.node]
    assert sorted(kinds) == ["Add", "MatMul", "Quant", "Quant", "Quant"]


def test_shapes_are_folded() -> None:
    graph = clean_qonnx(_with_a_computed_shape()).graph
    assert [node.op_type for node in graph.node] == ["Quant", "Reshape", "Div"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    np.testing.assert_array_equal(stored["Reshape_0_param0"], [1, -1])
    assert stored["Div_0_param0"] == 12


def test_each_node_has_parameters_of_its_own() -> None:
    graph = clean_qonnx(_with_a_transposed_weight()).graph
    stored = {tensor.name for tensor in graph.initializer}
    read = [name for node in graph.node for name in node.input if name in stored]
    assert len(read) == len(set(read)) == len(stored)
