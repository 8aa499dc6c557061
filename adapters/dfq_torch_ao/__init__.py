"""Adapter for `torch.ao.quantization` in FX graph mode: calibration to real int8 modules and TorchScript export."""
