"""The settings of the ModelOpt calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from dataclasses import dataclass

from dfq_shared.tensorrt.options import RangeOptions


@dataclass(frozen=True)
class ModelOptOptions(RangeOptions):
    """How ranges are chosen; see `RangeOptions`."""
