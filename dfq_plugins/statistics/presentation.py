"""How a network is shown data when its BatchNorm statistics are compared: plainly, or as training usually shows it.

A network's stored statistics are those of its training data *as training augmented them*. Images of the training set
that are shown plainly may therefore look farther away than strangers: a border, for one, raises the variances of
the first layers. How a network was trained is not known, so data is shown in both ways, and what fits best counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from dfq_plugins.errors import UsageError
from dfq_plugins.model_state import device_of
from dfq_plugins.statistics.augmentation import PADDING_SHARE, Augmentation, augment, padding_of
from dfq_plugins.statistics.batch_norm import StatisticsPool, divergence_of, reached_layers, stored_statistics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from dfq_plugins.types import InputSpec

Presentation: TypeAlias = Literal["none", "pad-and-crop"]

PresentationChoice: TypeAlias = Literal["auto", "none", "pad-and-crop"]


def presentations(spec: InputSpec, choice: PresentationChoice) -> tuple[Presentation, ...]:
    """Return the ways in which to show data of a specification.

    Raises:
        UsageError: pad-and-crop is asked for inputs that are no images of a known value range.
    """
    if choice == "auto":
        return ("none", "pad-and-crop") if padding_of(spec) else ("none",)
    if choice == "pad-and-crop" and (len(spec.shape) != 3 or spec.bounds is None):  # noqa: PLR2004
        raise UsageError(
            f"pad-and-crop needs images (channels, height, width) of a known value range, got {spec}. "
            "Give the value range, or choose none."
        )
    return (choice,)


def best_divergences(
    model: nn.Module, batches: Iterable[Tensor], spec: InputSpec, choice: PresentationChoice = "auto"
) -> tuple[Presentation, dict[str, float]]:
    """Return the presentation under which the data fits best, and the KL divergence of each layer, in nats.

    Args:
        model: a network in eval mode; where a forward pass calls no BatchNorm layer, there is no divergence.
        batches: inputs `(batch, *shape)`, moved to the network's device one by one; iterated once.
        spec: what an input looks like.
        choice: one presentation, or "auto" for the better one.

    Raises:
        UsageError: the presentation does not fit the specification.
        ValueError: there is no sample.
    """
    device = device_of(model)
    names = reached_layers(model, torch.zeros(1, *spec.shape, dtype=torch.float32, device=device))
    if not names:
        return "none", {}
    pools = {way: StatisticsPool(model, spec, names) for way in presentations(spec, choice)}
    rng = torch.Generator().manual_seed(0)  # the same shifts for all data
    for batch in batches:
        moved = batch.to(device)
        for way, pool in pools.items():
            pool.add(_shown(moved, way, spec, rng))
    stored = stored_statistics(model, spec, names)
    divergences = {way: divergence_of(stored, pool.moments()) for way, pool in pools.items()}
    best = min(divergences, key=lambda way: sum(divergences[way].values()))
    return best, divergences[best]


def _shown(batch: Tensor, way: Presentation, spec: InputSpec, rng: torch.Generator) -> Tensor:
    if way == "none" or spec.bounds is None:
        return batch
    border = max(1, min(spec.shape[1:]) // PADDING_SHARE)
    return augment(batch, Augmentation(flip=True, padding=border), rng, spec.pad_value)
