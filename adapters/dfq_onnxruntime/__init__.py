"""Calibration inside ONNX Runtime's own static quantization."""
