"""FINN's rules for a QONNX graph, one pure function each.

They restate what FINN's first build step, `ConvertQONNXtoFINN`, does with a file: it moves biases out of their
convolutions, folds weights, and turns each activation quantizer into thresholds together with the ReLU before it. They
also restate which operators the later steps have hardware for. FINN rejects some violations, and converts others into a
network that computes something else. Source: github.com/Xilinx/finn, commits 39f0c9a (main) and 73ba5ed (dev) of April
2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dfq_brevitas.finn.graph_view import MOVES, QUANTIZERS, GraphView
from dfq_plugins.quantization.onnx_graph import attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Findings = Iterator["Finding"]
    Rule = Callable[[GraphView], Findings]

WIDEST = 8
OPERATORS = frozenset(
    (
        "Add",
        "BatchNormalization",
        "BipolarQuant",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Div",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "Identity",
        "MatMul",
        "MaxPool",
        "Mul",
        "Quant",
        "Relu",
        "Reshape",
        "Resize",
        "Sub",
        "Transpose",
        "Upsample",
    )
)
"""Operators that FINN converts, moves into thresholds, or has hardware for."""

_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_IMAGE_RANK = 4
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}


@dataclass(frozen=True)
class Finding:
    """One violation: the node and what is wrong with it."""

    node: str
    detail: str


def connected(graph: GraphView) -> Findings:
    """Every input of every node exists: a graph input, a constant, or another node's output."""
    known = {*graph.inputs, *graph.stored, *graph.producers, ""}
    for node in graph.graph.node:
        for tensor in node.input:
            if tensor not in known:
                yield Finding(node.name, f"reads {tensor}, which nothing produces")
    for tensor in graph.outputs:
        if tensor not in known:
            yield Finding(tensor, "is an output that nothing produces")


def known_operators(graph: GraphView) -> Findings:
    """Every operator is one that FINN converts or has hardware for."""
    for node in graph.graph.node:
        if node.op_type not in OPERATORS:
            yield Finding(node.name, f"is {node.op_type}, which FINN has no hardware for")


def static_shapes(graph: GraphView) -> Findings:
    """Every tensor has a known shape: FINN sizes its hardware by them."""
    for tensor in dict.fromkeys((*graph.inputs, *graph.producers, *graph.outputs)):
        shape = graph.shapes.get(tensor, (None,))
        if None in shape:
            yield Finding(tensor, f"has the shape {shape}, which is not fully known")


def one_quantizer_per_producer(graph: GraphView) -> Findings:
    """A tensor is read by at most one quantizer, and a ReLU only by its quantizer.

    FINN deletes the ReLU with the first of its quantizers, which leaves other readers without an input.
    """
    for tensor, readers in graph.readers.items():
        quantizers = [node.name for node in readers if node.op_type in QUANTIZERS and node.input[0] == tensor]
        maker = graph.producers.get(tensor)
        if len(quantizers) > 1:
            yield Finding(maker.name if maker else tensor, f"is read by the quantizers {', '.join(quantizers)}")
        elif maker is not None and maker.op_type == "Relu" and (len(readers) > 1 or tensor in graph.outputs):
            others = [node.name for node in readers if node.name not in quantizers] or ["the graph's output"]
            yield Finding(maker.name, f"is read by {', '.join(others)} in addition to its quantizer")


def quantized_relus(graph: GraphView) -> Findings:
    """Every ReLU has a quantizer, which turns it into thresholds."""
    for node in graph.nodes_of("Relu"):
        readers = graph.readers.get(node.output[0], ())
        if not any(reader.op_type in QUANTIZERS for reader in readers):
            yield Finding(node.name, "has no quantizer after it")


def signs(graph: GraphView) -> Findings:
    """Quantizers after ReLUs are unsigned and not narrow; all other activation quantizers are signed."""
    for node in graph.activation_quantizers():
        maker = graph.producers.get(node.input[0])
        after_relu = maker is not None and maker.op_type == "Relu"
        if node.op_type == "BipolarQuant":
            continue
        if after_relu and (attribute(node, "signed", 1) or attribute(node, "narrow", 0)):
            yield Finding(node.name, "follows a ReLU and must be unsigned and not narrow")
        if not after_relu and not attribute(node, "signed", 1):
            yield Finding(node.name, f"follows {_kind(maker)} and must be signed")


def zero_points(graph: GraphView) -> Findings:
    """Every zero point is a single constant 0; that of a bias has the shape (1,)."""
    for node in graph.nodes_of("Quant"):
        zero_point = graph.stored.get(node.input[2])
        if zero_point is None or zero_point.size != 1 or np.any(zero_point):
            yield Finding(node.name, f"needs a single zero point of 0, but has {_short(zero_point)}")
        elif node.input[0] in graph.stored and zero_point.shape != (1,) and _feeds_a_bias(graph, node):
            yield Finding(node.name, f"quantizes a bias and needs a zero point of shape (1,), not {zero_point.shape}")


def widths(graph: GraphView) -> Findings:
    """Every width is a constant whole number: 1 to 8 for activations and weights; biases may have more."""
    for node in graph.nodes_of("Quant"):
        width = graph.stored.get(node.input[3])
        if width is None or width.size != 1 or not float(width.item()).is_integer() or width.item() < 1:
            yield Finding(node.name, f"needs a constant integer width, but has {_short(width)}")
        elif width.item() > WIDEST and not _feeds_a_bias(graph, node):
            yield Finding(node.name, f"has {width.item():g} bits, but FINN's thresholds take at most {WIDEST}")


def scales(graph: GraphView) -> Findings:
    """Every scale is constant and positive: one per tensor or channel for activations, per output for weights."""
    for node in graph.nodes_of(*QUANTIZERS):
        scale = graph.stored.get(node.input[1])
        if scale is None or not np.all(np.isfinite(scale)) or not np.all(scale > 0):
            yield Finding(node.name, f"needs constant positive scales, but has {_short(scale)}")
        elif node.input[0] in graph.stored:
            yield from _weight_scale(graph, node, scale)
        elif scale.size not in (1, _channels(graph, node.input[0])):
            yield Finding(node.name, f"has {scale.size} scales, neither one nor one per channel")


def rounding(graph: GraphView) -> Findings:
    """Every quantizer rounds to nearest, like thresholds halfway between levels."""
    for node in graph.nodes_of("Quant"):
        mode = attribute(node, "rounding_mode", "ROUND")
        if str(mode).upper() != "ROUND":
            yield Finding(node.name, f"uses the rounding mode {mode}, not round-to-nearest")


def integer_layers(graph: GraphView) -> Findings:
    """Every layer with weights reads quantized values, and its weights come from a quantizer of constants."""
    for node in graph.nodes_of(*_LAYERS):
        weights = graph.producers.get(node.input[1])
        if weights is None or weights.op_type not in QUANTIZERS or weights.input[0] not in graph.stored:
            yield Finding(node.name, "needs constant weights that go directly through a quantizer")
        if not _is_integer(graph, node.input[0]):
            yield Finding(node.name, f"reads {node.input[0]}, which is not quantized")


def joined_scales(graph: GraphView) -> Findings:
    """All inputs of an addition or concatenation are quantized with one scale, which FINN moves after it."""
    for node in graph.nodes_of("Add", "Concat"):
        tensors = [tensor for tensor in node.input if not graph.is_constant(tensor)]
        found = [_scales_behind(graph, tensor) for tensor in tensors]
        if len(tensors) < 2:  # noqa: PLR2004  a constant joins without a scale
            continue
        if any(len(behind) == 0 for behind in found):
            yield Finding(node.name, "joins a tensor that is not quantized")
        elif len(frozenset().union(*found)) > 1:
            listed = ", ".join(" and ".join(f"{scale:.6g}" for scale in sorted(behind)) for behind in found)
            yield Finding(node.name, f"joins tensors with the scales {listed}")


def convolutions(graph: GraphView) -> Findings:
    """Convolutions read maps with height and width, and have one group or one per channel."""
    for node in graph.nodes_of(*_CONVOLUTIONS):
        shape = graph.shapes.get(node.input[0], ())
        groups = attribute(node, "group", 1)
        if len(shape) != _IMAGE_RANK:
            yield Finding(node.name, f"reads a tensor of shape {shape}, not (batch, channels, height, width)")
        elif groups not in (1, shape[1]) or (groups > 1 and shape[1] != _channels(graph, node.output[0])):
            yield Finding(node.name, f"has {groups} groups on {shape[1]} channels, neither one nor one per channel")


def multiplications(graph: GraphView) -> Findings:
    """Products and differences have a constant on one side, which FINN moves into thresholds."""
    for node in graph.nodes_of("Mul", "Sub", "Div"):
        if not any(graph.is_constant(tensor) for tensor in node.input):
            yield Finding(node.name, f"is a {node.op_type} of two activations")


def nearest_upsampling(graph: GraphView) -> Findings:
    """Upsampling must repeat values."""
    for node in graph.nodes_of("Resize", "Upsample"):
        mode = attribute(node, "mode", "nearest")
        if mode != "nearest":
            yield Finding(node.name, f"upsamples with mode {mode}, not nearest")


RULES: tuple[tuple[str, Rule], ...] = (
    ("no dangling input", connected),
    ("known operators", known_operators),
    ("static shapes", static_shapes),
    ("one quantizer per producer", one_quantizer_per_producer),
    ("quantized ReLUs", quantized_relus),
    ("signs by producer", signs),
    ("zero points", zero_points),
    ("widths", widths),
    ("scales", scales),
    ("rounding", rounding),
    ("integer layers", integer_layers),
    ("one scale where tensors join", joined_scales),
    ("convolutions", convolutions),
    ("products with constants", multiplications),
    ("nearest upsampling", nearest_upsampling),
)
"""All rules, with the names used in reports and errors."""


def _is_integer(graph: GraphView, tensor: str) -> bool:
    """Return whether a tensor is a quantizer's output, or scaled integers computed from one."""
    maker = graph.producers.get(tensor)
    if maker is None:
        return False
    if maker.op_type in QUANTIZERS:
        return True
    kept = (*MOVES, "GlobalAveragePool")
    if maker.op_type in kept:
        return _is_integer(graph, maker.input[0])
    return maker.op_type == "Concat" and all(_is_integer(graph, part) for part in maker.input)


def _scales_behind(graph: GraphView, tensor: str) -> frozenset[float]:
    """Return the scales of the quantizers whose grid a tensor is on; empty if there is none."""
    maker = graph.producers.get(tensor)
    if maker is None:
        return frozenset()
    if maker.op_type in QUANTIZERS:
        scale = graph.stored.get(maker.input[1])
        return frozenset(() if scale is None else scale.flatten().tolist())
    if maker.op_type == "Concat":
        return frozenset[float]().union(*(_scales_behind(graph, part) for part in maker.input))
    selects = maker.op_type == "Conv" and _selects(graph, maker)
    return _scales_behind(graph, maker.input[0]) if maker.op_type in MOVES or selects else frozenset()


def _selects(graph: GraphView, convolution: Any) -> bool:
    """Return whether a convolution only passes channels on: each output is one input, or zero, at a scale of 1."""
    quantizer = graph.producers.get(convolution.input[1])
    weights = graph.stored.get(quantizer.input[0]) if quantizer is not None else None
    scale = graph.stored.get(quantizer.input[1]) if quantizer is not None else None
    if weights is None or scale is None:
        return False
    only_ones = bool(np.all((weights == 0) | (weights == 1)) and np.all(scale == 1))
    return only_ones and bool(np.all(np.abs(weights).reshape(len(weights), -1).sum(1) <= 1))


def _feeds_a_bias(graph: GraphView, quantizer: Any) -> bool:
    """Return whether a quantizer's output is added: by an addition, or as a layer's third input."""
    tensor = quantizer.output[0]
    if quantizer.input[0] not in graph.stored:
        return False
    readers = graph.readers.get(tensor, ())
    return all(node.op_type == "Add" or tensor in list(node.input)[2:3] for node in readers)


def _weight_scale(graph: GraphView, quantizer: Any, scale: np.ndarray[Any, Any]) -> Findings:
    """Find weight scales that are neither one per tensor nor one per output."""
    tensor = quantizer.output[0]
    for layer in graph.readers.get(tensor, ()):
        if layer.op_type in _OUTPUT_AXIS and tensor == layer.input[1] and scale.size > 1:
            outputs = graph.stored[quantizer.input[0]].shape[_OUTPUT_AXIS[layer.op_type]]
            if (
                scale.size != outputs
                or scale.ndim <= _OUTPUT_AXIS[layer.op_type]
                or scale.shape[_OUTPUT_AXIS[layer.op_type]] != outputs
            ):
                yield Finding(quantizer.name, f"has scales of shape {scale.shape}, neither one nor one per output")


def _channels(graph: GraphView, tensor: str) -> int | None:
    shape = graph.shapes.get(tensor, ())
    return shape[1] if len(shape) > 1 else None


def _kind(maker: Any | None) -> str:
    return "the network's input" if maker is None else maker.op_type


def _short(value: np.ndarray[Any, Any] | None) -> str:
    if value is None:
        return "none"
    text = np.array2string(value.flatten()[:4], separator=", ")
    return f"{text} of shape {value.shape}"
