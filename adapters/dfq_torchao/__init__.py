"""Calibration and training inside torchao's PT2E flow."""
