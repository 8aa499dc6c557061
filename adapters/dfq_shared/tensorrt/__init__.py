"""One algorithm over NVIDIA's two frameworks: symmetric ranges, fake quantization, and Q/DQ files for TensorRT."""
