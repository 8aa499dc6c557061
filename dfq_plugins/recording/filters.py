"""Dropout filters: masks of the units that a network keeps, drawn once and stored in the record."""

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
"""Fractions of the input values and hidden units that a filter keeps, as in the paper."""


def draw_filter(
    model: nn.Module, spec: InputSpec, layers: Sequence[Layer], units: Units, rng: torch.Generator
) -> dict[str, Tensor]:
    """Draw a Bernoulli mask for the input and for each layer except the output; each keeps at least one unit.

    Args:
        model: the network.
        spec: its input specification.
        layers: the recorded layers, the output last.
        units: definition of a unit; if it is a channel, whole channels are dropped.
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
