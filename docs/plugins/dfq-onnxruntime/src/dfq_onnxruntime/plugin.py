"""Registers the calibrator "onnxruntime". Imports neither torch nor ONNX Runtime."""

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
        name="onnxruntime",
        summary="ONNX Runtime's static quantization: int8 QDQ models",
        factory="dfq_onnxruntime.calibrator:OnnxRuntimeCalibrator",
        requires=("onnx", "onnxruntime", "onnxscript"),
        install="dfq-onnxruntime",
        options=OnnxRuntimeOptions,
        artifact_suffixes=("_int8.onnx",),
    )
