"""Registers the ModelOpt calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_modelopt.options import ModelOptOptions
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import CalibratorEntry

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def dfq_calibrators() -> Iterator[CalibratorEntry]:
    """Provide `modelopt`."""
    yield CalibratorEntry(
        "modelopt",
        "NVIDIA ModelOpt: fake-quantized modules, 2 to 8 bits, ONNX for TensorRT",
        "dfq_modelopt.calibrator:ModelOptCalibrator",
        requires=("modelopt", "requests", "huggingface_hub", "onnx", "onnxruntime"),
        install="dfq-plugins[modelopt]",
        options=ModelOptOptions,
        artifact_suffixes=(".modelopt.onnx",),
    )
