"""Adapter for NVIDIA's pytorch-quantization, the path to TensorRT; importing this does not load the framework."""
