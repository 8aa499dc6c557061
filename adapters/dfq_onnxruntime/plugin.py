"""Registers the ONNX Runtime calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_onnxruntime.options import OnnxRuntimeOptions
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import CalibratorEntry

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def dfq_calibrators() -> Iterator[CalibratorEntry]:
    """Provide `onnxruntime`."""
    yield CalibratorEntry(
        "onnxruntime",
        "ONNX Runtime's static quantization: QDQ models for its int8 kernels, from torch networks and ONNX files",
        "dfq_onnxruntime.calibrator:OnnxRuntimeCalibrator",
        requires=("onnx", "onnxruntime", "onnxscript"),
        install="dfq-plugins[onnxruntime]",
        options=OnnxRuntimeOptions,
        artifact_suffixes=("_int8.onnx",),
        onnx_files=True,
    )
