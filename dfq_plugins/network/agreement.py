"""How often two networks predict the same class: a measure that needs no labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dfq_plugins.model_state import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


@torch.no_grad()
def top1_agreement(reference: nn.Module, other: nn.Module, batches: Iterable[Tensor], limit: int) -> float:
    """Return the fraction of up to `limit` inputs for which both predict the same class; NaN if not classifiers."""
    same = seen = 0
    for batch in batches:
        # Copies, because a forward pass may write into its input.
        expected, found = (model(batch.clone().to(device_of(model))).cpu() for model in (reference, other))
        if expected.ndim != 2:  # noqa: PLR2004  (batch, classes)
            return math.nan
        same += int((expected.argmax(1) == found.argmax(1)).sum())
        seen += len(batch)
        if seen >= limit:
            break
    return same / seen
