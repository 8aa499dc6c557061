"""Turns the markers of a traced graph into pairs of QuantizeLinear and DequantizeLinear: int8 with zero point 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dfq_shared.tensorrt.operators import DEQUANTIZE, QUANTIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MARKER_DOMAIN, MARKER_OPERATOR = "dfq", "FakeQuantize"

LOWEST, HIGHEST = -128, 127
"""Levels of int8, the only 8-bit integers that TensorRT computes with."""


@dataclass(frozen=True)
class IntegerFormat:
    """How a tensor is quantized to integers: `clip(round(value / scale), lowest, highest)`, with zero point 0.

    Args:
        scale: the step as float32: a scalar, or one per channel `(channels,)`.
        axis: channel axis; None for a single step.
        lowest: lowest level.
        highest: highest level.
    """

    scale: np.ndarray[Any, np.dtype[np.float32]]
    axis: int | None
    lowest: int
    highest: int

    @property
    def fits_int8(self) -> bool:
        """Whether every level fits into int8.

        >>> IntegerFormat(np.float32(0.1), None, 0, 127).fits_int8
        True
        >>> IntegerFormat(np.float32(0.1), None, 0, 255).fits_int8
        False
        """
        return self.lowest >= LOWEST and self.highest <= HIGHEST

    @property
    def bounds(self) -> tuple[Any, Any] | None:
        """Values of the lowest and the highest level; None if they are the limits of int8."""
        if (self.lowest, self.highest) == (LOWEST, HIGHEST):
            return None
        return np.float32(self.lowest) * self.scale, np.float32(self.highest) * self.scale

    @property
    def key(self) -> tuple[Any, ...]:
        """Key that is the same for equal formats."""
        return self.scale.tobytes(), self.axis, self.lowest, self.highest


@dataclass(frozen=True)
class QdqModel:
    """An ONNX model with quantize and dequantize pairs.

    Args:
        proto: the `onnx.ModelProto`.
        integers: for each quantizer, the tensors of its integers, one per call. Quantizers of the same tensor with the
            same format share one tensor.
    """

    proto: Any
    integers: Mapping[str, tuple[str, ...]]


def insert_pairs(
    traced: Any, formats: Mapping[str, IntegerFormat], weights: Mapping[str, np.ndarray[Any, Any]]
) -> QdqModel:
    """Replace each marker with a QuantizeLinear and DequantizeLinear pair, after a clip if it has fewer levels.

    A weight needs no clip: its stored values already lie on its levels.

    Args:
        traced: the traced `onnx.ModelProto`; not changed.
        formats: the integer format of each quantizer.
        weights: the fake-quantized weight of each weight quantizer, which becomes an initializer.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(traced)
    builder = _Builder(formats, weights)
    for node in traced.graph.node:
        if (node.domain, node.op_type) == (MARKER_DOMAIN, MARKER_OPERATOR):
            builder.replace(node)
        else:
            builder.keep(node)
    outputs = {value.name for value in proto.graph.output}
    builder.nodes += [
        helper.make_node("Identity", [target], [name], name=f"{name}/Identity")
        for name, target in builder.renamed.items()
        if name in outputs
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(builder.nodes)
    proto.graph.initializer.extend(builder.initializers)
    del proto.graph.value_info[:]  # the traced shapes, in which the markers' tensors occur
    kept = [entry for entry in proto.opset_import if entry.domain != MARKER_DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    _remove_unread(proto.graph)
    return QdqModel(proto, {name: tuple(tensors) for name, tensors in builder.integers.items()})


class _Builder:
    """Collects the nodes and initializers of the new graph."""

    def __init__(self, formats: Mapping[str, IntegerFormat], weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._formats, self._weights = formats, weights
        self._pairs: dict[tuple[Any, ...], tuple[str, str]] = {}
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.renamed: dict[str, str] = {}
        self.integers: dict[str, list[str]] = {}

    def keep(self, node: Any) -> None:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        for index, name in enumerate(kept.input):
            kept.input[index] = self.renamed.get(name, name)
        self.nodes.append(kept)

    def replace(self, marker: Any) -> None:
        """Write the pair for a marker, or reuse that of an equal quantizer of the same tensor."""
        name = next(attribute.s for attribute in marker.attribute if attribute.name == "name").decode()
        tensor = marker.input[0]
        tensor = f"{name}.levels" if name in self._weights else self.renamed.get(tensor, tensor)
        key = (tensor, *self._formats[name].key)
        if key not in self._pairs:
            call = len(self.integers.get(name, []))
            prefix = f"{name}_{call}" if call else name
            self._pairs[key] = self._pair(prefix, name, tensor, marker.output[0]), marker.output[0]
        integers, dequantized = self._pairs[key]
        self.integers.setdefault(name, []).append(integers)
        if dequantized != marker.output[0]:
            self.renamed[marker.output[0]] = dequantized

    def _pair(self, prefix: str, name: str, tensor: str, output: str) -> str:
        form = self._formats[name]
        if name in self._weights:
            self._store(tensor, self._weights[name].astype(np.float32))
        elif form.bounds is not None:
            low, high = (
                self._store(f"{prefix}.lowest", form.bounds[0]),
                self._store(f"{prefix}.highest", form.bounds[1]),
            )
            self.nodes.append(
                helper.make_node("Clip", [tensor, low, high], [f"{prefix}.clipped"], name=f"{prefix}/Clip")
            )
            tensor = f"{prefix}.clipped"
        scale = self._store(f"{prefix}.scale", form.scale)
        zero = self._store(f"{prefix}.zero_point", np.zeros_like(form.scale, dtype=np.int8))
        axis = {} if form.axis is None else {"axis": form.axis}
        integers = f"{prefix}.integers"
        self.nodes += [
            helper.make_node(QUANTIZE, [tensor, scale, zero], [integers], name=f"{prefix}/{QUANTIZE}", **axis),
            helper.make_node(DEQUANTIZE, [integers, scale, zero], [output], name=f"{prefix}/{DEQUANTIZE}", **axis),
        ]
        return integers

    def _store(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _remove_unread(graph: Any) -> None:
    """Remove the nodes and initializers that are no longer read: the float weights."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [node for node in graph.node if not read.isdisjoint(node.output) or _has_subgraph(node)]
        if len(kept) == len(graph.node):
            break
        _replace_all(graph.node, kept)
    if not any(_has_subgraph(node) for node in graph.node):
        _replace_all(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])


def _replace_all(field: Any, values: Iterable[Any]) -> None:
    kept = list(values)
    del field[:]
    field.extend(kept)


def _has_subgraph(node: Any) -> bool:
    return any(attribute.HasField("g") for attribute in node.attribute)
