"""An exported graph as FINN's rules read it: producer and readers of each tensor, and the constant values."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    Array = np.ndarray[Any, Any]

QUANTIZERS = ("Quant", "BipolarQuant")
MOVES = ("Pad", "MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Resize", "Upsample")
"""Operators whose output values are input values or zero."""


@dataclass(frozen=True)
class GraphView:
    """An ONNX graph, indexed by tensor names.

    Args:
        nodes: the nodes in order.
        producers: the node that produces each tensor.
        readers: the nodes that read each tensor.
        constants: the initializers.
        shapes: the sizes of each tensor; unknown ones are None.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
    """

    nodes: tuple[Any, ...]
    producers: Mapping[str, Any]
    readers: Mapping[str, tuple[Any, ...]]
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int | None, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def nodes_of(self, *kinds: str) -> Iterator[Any]:
        """Yield the nodes of the given operators."""
        return (node for node in self.nodes if node.op_type in kinds)

    def is_constant(self, tensor: str) -> bool:
        """Return whether a tensor is an initializer or a quantized initializer."""
        producer = self.producers.get(tensor)
        if producer is not None and producer.op_type in QUANTIZERS:
            return producer.input[0] in self.constants
        return tensor in self.constants

    def activation_quantizers(self) -> Iterator[Any]:
        """Yield the quantizers of activations."""
        return (node for node in self.nodes_of(*QUANTIZERS) if node.input[0] not in self.constants)


def view_graph(graph: Any) -> GraphView:
    """Index an `onnx.GraphProto`."""
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for tensor in dict.fromkeys(node.input):
            readers[tensor].append(node)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    described = (*graph.input, *graph.output, *graph.value_info)
    return GraphView(
        nodes=tuple(graph.node),
        producers={tensor: node for node in graph.node for tensor in node.output},
        readers={tensor: tuple(nodes) for tensor, nodes in readers.items()},
        constants=constants,
        shapes={info.name: _shape(info) for info in described} | {name: data.shape for name, data in constants.items()},
        inputs=tuple(tensor.name for tensor in graph.input if tensor.name not in constants),
        outputs=tuple(tensor.name for tensor in graph.output),
    )


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return an attribute's value: an integer, a list of integers, or text."""
    for given in node.attribute:
        if given.name == name:
            return given.s.decode() if given.s else list(given.ints) or given.i
    return default


def _shape(info: Any) -> tuple[int | None, ...]:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return (None,)
    return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in tensor.shape.dim)
