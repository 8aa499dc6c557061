"""Reads off a quantized graph which layers compute in integers."""

import onnx
from onnx import TensorProto, numpy_helper

from dfq_plugins.types import Coverage, NumberFormat, QuantizedTensor

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
MOVES = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Flatten",
    "Reshape",
    "Transpose",
    "Constant",
    "Relu",
    "Clip",
}  # no arithmetic


def read_coverage(program: bytes) -> Coverage:
    graph = onnx.load_from_string(program).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    formats = {
        node.output[0]: number_format(constants[node.input[1]], constants[node.input[2]])
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    quantized, floating = [], []
    for node in graph.node:
        if node.op_type in MOVES:
            continue
        name = layer_name(node.name)
        if node.op_type in WEIGHTED and all(tensor in formats for tensor in node.input[:2]):
            for tensor, role in zip(node.input, ("input", "weight"), strict=False):
                quantized.append(QuantizedTensor(name, node.op_type, role, formats[tensor]))
        elif not all(tensor in formats for tensor in node.input):
            floating.append((name or node.op_type, f"{node.op_type}: ONNX Runtime leaves it in float"))
    return Coverage(tuple(quantized), tuple(floating))


def number_format(scale: TensorProto, zero_point: TensorProto) -> NumberFormat:
    signed = zero_point.data_type == TensorProto.INT8
    steps, zeros = numpy_helper.to_array(scale), numpy_helper.to_array(zero_point).astype(int)
    symmetric = not zeros.any()
    if steps.size > 1:
        return NumberFormat(8, signed, symmetric, per_channel=True, stored_bits=8)
    lowest, highest = (-128, 127) if signed else (0, 255)
    ends = ((lowest - zeros) * steps, (highest - zeros) * steps)
    return NumberFormat(8, signed, symmetric, per_channel=False, stored_bits=8, range=(float(ends[0]), float(ends[1])))


def layer_name(node: str) -> str:
    """Turn a node's name into its module's.

    >>> layer_name("/layer1/layer1.0/conv1/Conv")
    'layer1.0.conv1'
    """
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()  # torch repeats a container's name before the name of its child
        parts.append(part)
    return ".".join(parts)
