"""Settings of the torch.ao calibrator. Does not import torch, so that they can be listed without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from dfq_plugins.types import setting

Engine = Literal["auto", "x86", "onednn", "fbgemm", "qnnpack"]
ActivationObserver = Literal["histogram", "minmax", "moving-average-minmax"]
TrainingRanges = Literal["calibrated", "moving-average"]


@dataclass(frozen=True)
class TorchAoOptions:
    """How torch.ao observes ranges, and for which kernels it packs the weights."""

    engine: Engine = setting(
        "auto", "kernels to pack the weights for; auto: torch.backends.quantized.engine (x86 on PCs)"
    )
    activation_observer: ActivationObserver = setting(
        "histogram", "how activation ranges are found; histogram clips outliers to minimize the squared error"
    )
    training_ranges: TrainingRanges = setting(
        "calibrated",
        "activation ranges in training: fixed by calibration, or tracked by moving averages until they are "
        "frozen, as in torch.ao",
    )
    per_channel: bool = setting(default=True, text="one weight scale per output channel instead of one per tensor")
    reduce_range: bool | None = setting(
        None,
        "keep 8-bit activations within 0..127, so that 16-bit sums on CPUs without VNNI cannot "
        "overflow; not set: torch.ao's choice for the engine (x86 and fbgemm: yes)",
    )
    output_margin: Annotated[float, Ge(1)] = setting(
        2.0,
        "range of the network's output, as a multiple of the calibrated range, when all 8 bits are in "
        "use: synthetic inputs rarely reach the largest logits of real ones",
    )
    non_traceable: tuple[str, ...] = setting((), "names of submodules that FX must not trace; they stay in float")
