"""The settings of the pytorch-quantization calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from dataclasses import dataclass

from dfq_shared.tensorrt.options import RangeOptions


@dataclass(frozen=True)
class PytorchQuantizationOptions(RangeOptions):
    """How ranges are chosen; see `RangeOptions`."""
