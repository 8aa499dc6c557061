"""How often two networks predict the same class: a measure that needs no labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dfq_plugins.inputs import cloned, count, moved, run_network
from dfq_plugins.model_state import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from dfq_plugins.types import Inputs, Specification


@torch.no_grad()
def top1_agreement(
    reference: nn.Module, other: nn.Module, batches: Iterable[Inputs], limit: int, spec: Specification | None = None
) -> float:
    """Return the fraction of up to `limit` inputs for which both predict the same class; NaN if not classifiers."""
    same = seen = 0
    for batch in batches:
        # Copies, because a forward pass may write into its input.
        expected, found = (
            run_network(model, moved(cloned(batch), device_of(model)), spec).cpu() for model in (reference, other)
        )
        if expected.ndim != 2:  # noqa: PLR2004  (batch, classes)
            return math.nan
        same += int((expected.argmax(1) == found.argmax(1)).sum())
        seen += count(batch)
        if seen >= limit:
            break
    return same / seen
