"""Dropout filters: which units of a network stay, drawn once and kept in the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.recording.units import INPUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dfq_plugins.recording.info import Layer
    from dfq_plugins.recording.options import Units
    from dfq_plugins.types import InputSpec

KEPT_INPUTS = 0.8
KEPT_UNITS = 0.5
"""Shares of the input's values and of the hidden units that a filter keeps, as in the paper."""


def draw_filter(
    model: nn.Module, spec: InputSpec, layers: Sequence[Layer], units: Units, rng: torch.Generator
) -> dict[str, Tensor]:
    """Draw a Bernoulli mask for the input and for each layer but the output; at least one unit of each stays.

    Args:
        model: the network.
        spec: its input.
        layers: what is recorded, the output last.
        units: what a unit is; where that is a channel, whole channels are dropped.
        rng: source of the draw.
    """
    masks = {INPUT: _bernoulli(spec.shape, KEPT_INPUTS, rng)}
    for layer in layers[:-1]:
        features = layer.shape[-1:] if isinstance(model.get_submodule(layer.name), nn.Linear) else layer.shape[:1]
        masks[layer.name] = _bernoulli(layer.shape if units == "full" else features, KEPT_UNITS, rng)
    return masks


def _bernoulli(shape: tuple[int, ...], share: float, rng: torch.Generator) -> Tensor:
    drawn = torch.rand(shape, generator=rng)
    kept = drawn < share
    kept.view(-1)[drawn.argmin()] = True
    return kept
