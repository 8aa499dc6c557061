"""Looks up the nodes and stored tensors of an ONNX graph by tensor name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    Array = np.ndarray[Any, Any]

SHAPE_ONLY = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that move values without changing them."""


@dataclass(frozen=True)
class GraphIndex:
    """Lookups over the nodes of a graph; subgraphs are not searched.

    Args:
        graph: an `onnx.GraphProto`; changes after the first lookup are not seen.
    """

    graph: Any

    @cached_property
    def producers(self) -> dict[str, Any]:
        """The node that produces each tensor."""
        return {output: node for node in self.graph.node for output in node.output}

    @cached_property
    def readers(self) -> dict[str, tuple[Any, ...]]:
        """The nodes that read each tensor, in order."""
        found: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def initializers(self) -> dict[str, Any]:
        """The stored tensors, as `onnx.TensorProto`."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the graph, without stored tensors."""
        return tuple(value.name for value in self.graph.input if value.name not in self.initializers)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of the graph."""
        return tuple(value.name for value in self.graph.output)

    @cached_property
    def _stored(self) -> dict[str, Any]:
        """The stored tensors and the values of Constant nodes, as `onnx.TensorProto`."""
        named = {
            node.output[0]: item.t
            for node in self.nodes_of("Constant")
            for item in node.attribute
            if item.name == "value"
        }
        return self.initializers | named

    def nodes_of(self, *kinds: str) -> Iterator[Any]:
        """Yield the nodes of the given operators, in order."""
        return (node for node in self.graph.node if node.op_type in kinds)

    def constants(self) -> dict[str, Array]:
        """Return the values of all initializers and Constant nodes."""
        return {name: numpy_helper.to_array(tensor) for name, tensor in self._stored.items()}

    def constant(self, name: str) -> Array | None:
        """Return the value of an initializer or Constant node, or None for a computed tensor."""
        tensor = self._stored.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

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


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return an attribute's value: an integer, a list of integers, or text."""
    for given in node.attribute:
        if given.name == name:
            return given.s.decode() if given.s else list(given.ints) or given.i
    return default


def label(node: Any) -> str:
    """Return the name of a node, or its kind and first output if it has none."""
    return str(node.name or f"{node.op_type} of {node.output[0]!r}")
