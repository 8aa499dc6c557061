"""Finds the producer and readers of a tensor in an ONNX graph, and the constant tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onnx import numpy_helper

if TYPE_CHECKING:
    import numpy as np

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

SHAPE_ONLY = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that move values without changing them."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply their first input by a weight, the second input."""


@dataclass(frozen=True)
class GraphIndex:
    """Lookups over the nodes of a graph; subgraphs are not searched.

    Args:
        graph: an `onnx.GraphProto`.
    """

    graph: Any

    @cached_property
    def producers(self) -> dict[str, Any]:
        """The node that produces each tensor."""
        return {output: node for node in self.graph.node for output in node.output}

    @cached_property
    def consumers(self) -> dict[str, list[Any]]:
        """The nodes that read each tensor, in order."""
        found: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The outputs of the graph."""
        return frozenset(value.name for value in self.graph.output)

    @cached_property
    def initializers(self) -> dict[str, Any]:
        """The stored tensors, as `onnx.TensorProto`."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return the value of an initializer or Constant node, or None for a computed tensor."""
        stored = self.initializers.get(name)
        node = self.producers.get(name)
        if stored is None and node is not None and node.op_type == "Constant":
            stored = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if stored is None:
            return None
        value: np.ndarray[Any, Any] = numpy_helper.to_array(stored)
        return value

    def source(self, name: str, through: frozenset[str] = SHAPE_ONLY) -> tuple[str, list[Any]]:
        """Follow the first inputs of the operators `through` back to where `name` comes from.

        Returns:
            The tensor that none of those operators produces, and the nodes that were passed, the last one first.
        """
        passed: list[Any] = []
        while (node := self.producers.get(name)) is not None and node.op_type in through:
            passed.append(node)
            name = node.input[0]
        return name, passed

    def source_node(self, name: str, through: frozenset[str] = SHAPE_ONLY) -> Any | None:
        """Return the node that produces the tensor found by `source`; None for an initializer or a graph input."""
        return self.producers.get(self.source(name, through)[0])


def attribute_of(node: Any, name: str, default: Any) -> Any:
    """Return an attribute of a node: an integer, or a list of integers."""
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) if attribute.ints else attribute.i
    return default


def label(node: Any) -> str:
    """Return the name of a node, or its kind and first output if it has none."""
    return str(node.name or f"{node.op_type} of {node.output[0]!r}")
