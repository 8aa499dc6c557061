"""An exported graph as FINN's rules read it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from onnx import numpy_helper

from dfq_plugins.quantization.onnx_graph import GraphIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    Array = np.ndarray[Any, Any]

QUANTIZERS = ("Quant", "BipolarQuant")
MOVES = ("Pad", "MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Resize", "Upsample")
"""Operators whose output values are input values or zero."""


class GraphView(GraphIndex):
    """An ONNX graph with the values that FINN takes from the file, and with its shapes."""

    @cached_property
    def stored(self) -> dict[str, Array]:
        """The values of the initializers; FINN reads no Constant nodes."""
        return {name: numpy_helper.to_array(tensor) for name, tensor in self.initializers.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The sizes of each tensor; unknown ones are None."""
        described = (*self.graph.input, *self.graph.output, *self.graph.value_info)
        return {info.name: _shape(info) for info in described} | {
            name: data.shape for name, data in self.stored.items()
        }

    def is_constant(self, tensor: str) -> bool:
        """Return whether a tensor is an initializer or a quantized initializer."""
        producer = self.producers.get(tensor)
        if producer is not None and producer.op_type in QUANTIZERS:
            return producer.input[0] in self.stored
        return tensor in self.stored

    def activation_quantizers(self) -> Iterator[Any]:
        """Yield the quantizers of activations."""
        return (node for node in self.nodes_of(*QUANTIZERS) if node.input[0] not in self.stored)


def _shape(info: Any) -> tuple[int | None, ...]:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return (None,)
    return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in tensor.shape.dim)
