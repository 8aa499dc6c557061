"""Registers the calibrator "tiny-ort". Imports neither torch nor ONNX Runtime."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from dfq_plugins import hookimpl
from dfq_plugins.types import CalibratorEntry


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    method: Literal["minmax", "entropy", "percentile"] = field(
        default="minmax", metadata={"help": "how ONNX Runtime chooses the ranges of activations"}
    )
    per_channel: bool = field(default=True, metadata={"help": "one weight scale per output channel"})
    reduce_range: bool = field(
        default=False, metadata={"help": "7-bit weights, so that 16-bit sums of CPUs without VNNI cannot overflow"}
    )


@hookimpl
def dfq_calibrators() -> Iterator[CalibratorEntry]:
    yield CalibratorEntry(
        name="tiny-ort",
        summary="ONNX Runtime's static quantization: int8 QDQ models",
        factory="dfq_tiny_ort.calibrator:OnnxRuntimeCalibrator",
        requires=("onnx", "onnxruntime", "onnxscript"),
        install="dfq-tiny-ort",
        options=OnnxRuntimeOptions,
        artifact_suffixes=("_tiny.onnx",),
    )
