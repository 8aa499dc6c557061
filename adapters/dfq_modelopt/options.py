"""The settings of the ModelOpt calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfq_plugins.types import setting
from dfq_shared.tensorrt.options import RangeOptions

Trace = bool | Literal["auto"]


@dataclass(frozen=True)
class ModelOptOptions(RangeOptions):
    """How ranges are chosen; see `RangeOptions`.

    Args:
        trace: whether the network is traced to a graph, in which layers written as functions or with a forward of their
            own become layers that ModelOpt quantizes; `auto` does so only for a network that has such layers.
        fp8: whether the levels are 8-bit floating-point numbers (E4M3) instead of integers; every range is then the
            largest value, as in ModelOpt's preset, and there is no ONNX file.
    """

    trace: Trace = setting(
        "auto", "trace the network, to quantize layers in functions and subclasses: true, false, or auto (where needed)"
    )
    fp8: bool = setting(default=False, text="at w8a8, 8-bit floating-point levels (E4M3) instead of integers; no file")
