"""Adapter for Brevitas graph mode PTQ: calibration from 2 to 8 bits, and export to QONNX and QCDQ ONNX."""
