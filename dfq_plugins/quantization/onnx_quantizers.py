"""Finds the quantized tensors in an ONNX graph with standard QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from dfq_plugins.quantization.onnx_graph import GraphIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    Array = np.ndarray[Any, Any]

_MOVES = frozenset(("QuantizeLinear", "Clip", "Transpose", "Identity", "Cast", "Reshape"))
"""Operators through which a stored tensor stays known before anything is computed."""


@dataclass(frozen=True)
class FileQuantizer:
    """One quantized tensor of a file.

    Args:
        integers: name of the tensor that holds its integers.
        values: name of the tensor that holds the same values, dequantized.
        scale: the step, one per tensor or one per channel.
        element_type: `onnx.TensorProto` type of the integers; float if the format stores them as floats.
        constant: whether it is stored in the file, as weights and biases are.
        names: torch's quantizers that it stands for, where the file says so.
    """

    integers: str
    values: str
    scale: Array
    element_type: int
    constant: bool
    names: tuple[str, ...] = ()


def qdq_quantizers(graph: Any) -> Iterator[FileQuantizer]:
    """Yield the tensors that DequantizeLinear nodes read, each once, possibly after a Clip of the integers."""
    index = GraphIndex(graph)
    constants = index.constants()
    seen = set()
    for node in index.nodes_of("DequantizeLinear"):
        if node.input[0] in seen:
            continue
        seen.add(node.input[0])
        if node.input[1] in constants:
            kind = helper.np_dtype_to_tensor_dtype(constants[node.input[2]].dtype) if len(node.input) > 2 else None  # noqa: PLR2004
            yield FileQuantizer(
                node.input[0],
                node.output[0],
                constants[node.input[1]],
                kind or TensorProto.UINT8,
                index.source(node.input[0], _MOVES)[0] in constants,
            )


def cut_at(model: Any, quantizers: Sequence[FileQuantizer]) -> bytes:
    """Return a copy of a model in which each quantizer's integers are an input, and an output under a new name.

    So each section between two quantizers runs on integers that are fed to it.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    wanted = {quantizer.integers: quantizer.element_type for quantizer in quantizers}
    for node in cut.graph.node:
        for index, name in enumerate(node.output):
            if name in wanted:
                node.output[index] = computed(name)
    for name, kind in wanted.items():
        cut.graph.input.append(helper.make_tensor_value_info(name, kind, None))
        cut.graph.output.append(helper.make_tensor_value_info(computed(name), kind, None))
    return _serialized(cut)


def exposed(model: Any, tensors: Sequence[tuple[str, int]]) -> bytes:
    """Return a copy of a model with additional outputs, given as tensor names with element types."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    present = {value.name for value in copied.graph.output}
    for name, kind in dict(tensors).items():
        if name not in present:
            copied.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return _serialized(copied)


def computed(name: str) -> str:
    """Return the output name under which a cut model returns its own result for a tensor that it is fed."""
    return f"{name} (computed)"


def _serialized(model: Any) -> bytes:
    del model.graph.value_info[:]  # stale for renamed tensors
    data: bytes = model.SerializeToString()
    return data
