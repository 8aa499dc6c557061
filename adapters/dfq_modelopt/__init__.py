"""Calibration and training inside NVIDIA ModelOpt."""
