"""Names of the ONNX operators that the files and TensorRT's rules are about."""

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply their first input by a weight, the second input."""
