"""How data is presented to a network to compare its BatchNorm statistics: unchanged, or augmented as in training.

A network's stored statistics are those of its training data *after augmentation*. Unaugmented training images may
therefore seem farther away than unrelated images: padding, for example, raises the variances of the first layers. The
training augmentation is unknown, so data is presented both ways, and the better fit counts.
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
    """Return the presentations to try for data of a specification.

    Raises:
        UsageError: pad-and-crop is requested for inputs that are not images with a known value range.
    """
    if choice == "auto":
        return ("none", "pad-and-crop") if padding_of(spec) else ("none",)
    if choice == "pad-and-crop" and (len(spec.shape) != 3 or spec.bounds is None):  # noqa: PLR2004
        raise UsageError(
            f"pad-and-crop needs images (channels, height, width) with a known value range, got {spec}. "
            "Set the value range, or choose none."
        )
    return (choice,)


def best_divergences(
    model: nn.Module, batches: Iterable[Tensor], spec: InputSpec, choice: PresentationChoice = "auto"
) -> tuple[Presentation, dict[str, float]]:
    """Return the presentation with the best fit, and the KL divergence of each layer in nats.

    Args:
        model: a network in eval mode; without BatchNorm layers in its forward pass, the result is empty.
        batches: inputs `(batch, *shape)`, moved to the network's device one by one; iterated once.
        spec: the input specification.
        choice: one presentation, or "auto" for the better one.

    Raises:
        UsageError: the presentation does not suit the specification.
        ValueError: there are no samples.
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
            pool.add(_presented(moved, way, spec, rng))
    stored = stored_statistics(model, spec, names)
    divergences = {way: divergence_of(stored, pool.moments()) for way, pool in pools.items()}
    best = min(divergences, key=lambda way: sum(divergences[way].values()))
    return best, divergences[best]


def _presented(batch: Tensor, way: Presentation, spec: InputSpec, rng: torch.Generator) -> Tensor:
    if way == "none" or spec.bounds is None:
        return batch
    padding = max(1, min(spec.shape[1:]) // PADDING_SHARE)
    return augment(batch, Augmentation(flip=True, padding=padding), rng, spec.pad_value)
