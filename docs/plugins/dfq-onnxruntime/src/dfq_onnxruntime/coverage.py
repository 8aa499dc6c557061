"""Reads off a quantized graph which layers compute in integers."""

import onnx

from dfq_plugins.types import Coverage, QuantizedLayer

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
    dequantized = {node.output[0]: node.input[2] for node in graph.node if node.op_type == "DequantizeLinear"}
    zero_points = {tensor.name: tensor for tensor in graph.initializer}

    def number_format(tensor: str) -> str | None:
        if tensor not in dequantized:
            return None
        zero_point = zero_points[dequantized[tensor]]
        kind = onnx.TensorProto.DataType.Name(zero_point.data_type).lower()
        return f"{kind} per {'channel' if zero_point.dims else 'tensor'}"

    quantized, floating = [], []
    for node in graph.node:
        if node.op_type in MOVES:
            continue
        formats = [number_format(tensor) for tensor in node.input]
        name = layer_name(node.name)
        if node.op_type in WEIGHTED and all(formats[:2]):
            quantized.append(QuantizedLayer(name, node.op_type, formats[1], formats[0]))
        elif not all(formats):
            floating.append((name or node.op_type, f"{node.op_type}: ONNX Runtime leaves it in float"))
    return Coverage(tuple(quantized), tuple(floating))


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
