"""Calibrator for NVIDIA's pytorch-quantization, the road to TensorRT; importing this loads no framework."""
