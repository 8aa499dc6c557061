"""Rewrites QONNX's quantizer nodes with standard ONNX operators, so that ONNX Runtime runs the graph as a whole.

`qonnx` itself executes node by node and sample by sample, which takes a minute or two on large networks. The operators
are those that QONNX uses to define its nodes, in the same order and in float, so each integer is the same:

    Quant(x) = (round(clip(x / scale + zero_point, lowest, highest)) - zero_point) * scale
    BipolarQuant(x) = (+1 where x >= 0, else -1) * scale
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dfq_plugins.errors import ArtifactError
from dfq_plugins.quantization.onnx_graph import GraphIndex
from dfq_plugins.quantization.onnx_quantizers import FileQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, Any]

_QUANTIZERS = frozenset(("Quant", "IntQuant", "BipolarQuant"))
_ROUNDING = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}


def lowered(model: Any) -> tuple[Any, tuple[FileQuantizer, ...]]:
    """Return a copy of a QONNX model with standard operators, and its quantized tensors.

    Args:
        model: an `onnx.ModelProto` whose quantizers have constant parameters; not changed.

    Raises:
        ArtifactError: a quantizer's parameter is computed, or no standard operator does its rounding.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    constants = GraphIndex(copied.graph).constants()
    nodes: list[Any] = []
    quantizers: list[FileQuantizer] = []
    for node in model.graph.node:
        if node.op_type in _QUANTIZERS:
            lower = _bipolar if node.op_type == "BipolarQuant" else _integer
            nodes += lower(copied.graph, node, constants)
            scale = _parameter(node, 1, constants)
            integers = f"{node.output[0]}/integers"
            constant = node.input[0] in constants
            quantizers.append(FileQuantizer(integers, node.output[0], scale, TensorProto.FLOAT, constant))
        else:
            nodes.append(node)
    del copied.graph.node[:]
    copied.graph.node.extend(nodes)
    kept = [entry for entry in copied.opset_import if not entry.domain.startswith(("qonnx", "onnx.brevitas", "finn"))]
    del copied.opset_import[:]
    copied.opset_import.extend(kept)
    return copied, tuple(quantizers)


def _integer(graph: Any, node: Any, constants: dict[str, Array]) -> Iterator[Any]:
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    rounding = attributes.get("rounding_mode", b"ROUND").decode().upper()
    if rounding not in _ROUNDING:
        raise ArtifactError(
            f"The rounding mode must be one of {', '.join(_ROUNDING)}, but {node.name} uses {rounding}, which no "
            "standard ONNX operator supports. Use another rounding mode in the quantizer."
        )
    bits = int(_parameter(node, 3, constants))
    lowest, highest = integer_range(bits, signed=bool(attributes["signed"]), narrow=bool(attributes["narrow"]))
    out = node.output[0]
    low, high = (_store(graph, f"{out}/{name}", value) for name, value in (("lowest", lowest), ("highest", highest)))
    yield helper.make_node("Div", [node.input[0], node.input[1]], [f"{out}/steps"])
    yield helper.make_node("Add", [f"{out}/steps", node.input[2]], [f"{out}/levels"])
    yield helper.make_node("Clip", [f"{out}/levels", low, high], [f"{out}/clipped"])
    yield helper.make_node(_ROUNDING[rounding], [f"{out}/clipped"], [f"{out}/integers"])
    yield helper.make_node("Sub", [f"{out}/integers", node.input[2]], [f"{out}/centered"])
    yield helper.make_node("Mul", [f"{out}/centered", node.input[1]], [out])


def _bipolar(graph: Any, node: Any, _constants: dict[str, Array]) -> Iterator[Any]:
    out = node.output[0]
    zero, plus, minus = (
        _store(graph, f"{out}/{name}", value) for name, value in (("zero", 0), ("plus", 1), ("minus", -1))
    )
    yield helper.make_node("GreaterOrEqual", [node.input[0], zero], [f"{out}/positive"])
    yield helper.make_node("Where", [f"{out}/positive", plus, minus], [f"{out}/integers"])
    yield helper.make_node("Mul", [f"{out}/integers", node.input[1]], [out])


def integer_range(bits: int, *, signed: bool, narrow: bool) -> tuple[int, int]:
    """Return the lowest and highest integer of a bit width, as QONNX and Brevitas define them.

    >>> integer_range(4, signed=True, narrow=True), integer_range(4, signed=False, narrow=False)
    ((-7, 7), (0, 15))
    """
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def _parameter(node: Any, index: int, constants: dict[str, Array]) -> Array:
    if node.input[index] not in constants:
        raise ArtifactError(
            f"{node.name} needs constant parameters, but {node.input[index]!r} is computed. Use a quantizer with fixed "
            "parameters."
        )
    return constants[node.input[index]]


def _store(graph: Any, name: str, value: float) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), name))
    return name
