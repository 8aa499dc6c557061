"""The fastest precision of a device."""

from __future__ import annotations

import torch


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bfloat16: if requested, or if `auto` and the hardware has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  no public test yet
