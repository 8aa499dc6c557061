"""Settings of the torchao calibrator. Does not import torch, so that they can be listed without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from dfq_plugins.types import setting

TrainingRanges = Literal["calibrated", "moving-average"]


@dataclass(frozen=True)
class TorchaoOptions:
    """Which quantizer annotates the network, and which files are written."""

    quantizer: str = setting(
        "x86",
        "what is quantized and how: x86 or arm (torchao), xnnpack (ExecuTorch), openvino (NNCF), or "
        "package.module:factory, called with is_qat and reduce_range",
    )
    reduce_range: bool | None = setting(
        None,
        "keep 8-bit activations within 0..127, so that 16-bit sums on CPUs without VNNI cannot overflow; not set: "
        "where the CPU of this machine lacks VNNI (x86 only)",
    )
    training_ranges: TrainingRanges = setting(
        "calibrated",
        "activation ranges in training: fixed by calibration, or tracked by the quantizer's moving averages until they "
        "are frozen",
    )
    output_margin: Annotated[float, Ge(1)] = setting(
        2.0,
        "range of the network's output, as a multiple of the calibrated range, if the quantizer quantizes it to all 8 "
        "bits: synthetic inputs rarely reach the largest logits of real ones",
    )
    keep_float: tuple[str, ...] = setting((), "names of submodules whose layers stay in float")
    aot_inductor: bool = setting(
        default=False,
        text="also compile the model with AOTInductor to model.aotinductor.pt2; takes minutes and a C++ compiler",
    )
    compiled_batch: Annotated[int, Ge(1)] = setting(
        1, "batch size of model.aotinductor.pt2; Inductor's int8 code is wrong for a batch of any size"
    )
