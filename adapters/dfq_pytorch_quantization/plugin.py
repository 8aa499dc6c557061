"""Registers the pytorch-quantization calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import CalibratorEntry
from dfq_pytorch_quantization.options import PytorchQuantizationOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def dfq_calibrators() -> Iterator[CalibratorEntry]:
    """Provide `pytorch-quantization`."""
    yield CalibratorEntry(
        "pytorch-quantization",
        "NVIDIA pytorch-quantization: fake-quantized modules, 2 to 8 bits, ONNX for TensorRT",
        "dfq_pytorch_quantization.calibrator:PytorchQuantizationCalibrator",
        requires=("pytorch_quantization", "onnx", "onnxruntime"),
        install="dfq-plugins[pytorch-quantization]",
        options=PytorchQuantizationOptions,
        artifact_suffixes=("_qdq.onnx",),
    )
