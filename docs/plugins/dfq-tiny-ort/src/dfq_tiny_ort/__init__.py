"""ONNX Runtime's static quantization for dfq-plugins."""
