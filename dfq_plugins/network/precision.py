"""TODO."""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING
import torch
from torch import Tensor, nn
from dfq_plugins.synthesis import terms as objectives
from dfq_plugins.statistics.augmentation import apply_maps
from dfq_plugins.synthesis.compilation import explained_failure, remember_compiled
from dfq_plugins.statistics.divergences import DIVERGENCES
from dfq_plugins.synthesis.fast_layers import freeze_norms
from dfq_plugins.network.memory import halves, is_out_of_memory, note_halving
from dfq_plugins.model_state import device_of
from dfq_plugins.synthesis.fast_layers import native_pooling
from dfq_plugins.statistics.batch_norm import StatisticsTaps, require_reached_layers, stored_statistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from dfq_plugins.statistics.augmentation import AxisMaps
    from dfq_plugins.synthesis.options import InversionOptions
    from dfq_plugins.statistics.moments import Moments
    from dfq_plugins.types import InputSpec

def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Tell whether to compute in bfloat16: where asked for, or where the hardware has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  no public test yet
