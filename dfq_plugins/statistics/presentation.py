"""How data is presented to a network to compare its BatchNorm statistics: unchanged, or augmented as in training.

A network's stored statistics are those of its training data *after augmentation*. Unaugmented training images may
therefore seem farther away than unrelated images: padding, for example, raises the variances of the first layers. The
training augmentation is unknown, so data is presented both ways, and the better fit counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from dfq_plugins.errors import UsageError
from dfq_plugins.inputs import blank_inputs, moved
from dfq_plugins.model_state import device_of
from dfq_plugins.statistics.augmentation import PADDING_SHARE, Augmentation, augment, padding_of
from dfq_plugins.statistics.batch_norm import StatisticsPool, divergence_of, reached_layers, stored_statistics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from dfq_plugins.types import Inputs, InputSpec, Specification

Presentation: TypeAlias = Literal["none", "pad-and-crop"]

PresentationChoice: TypeAlias = Literal["auto", "none", "pad-and-crop"]


def presentations(spec: Specification, choice: PresentationChoice) -> tuple[Presentation, ...]:
    """Return the presentations to try for data of a specification; of several inputs, only images are padded.

    Raises:
        UsageError: pad-and-crop is requested, but no input is an image with a known value range.
    """
    if choice == "auto":
        return ("none", "pad-and-crop") if any(map(padding_of, spec.named.values())) else ("none",)
    if choice == "pad-and-crop" and not any(map(_is_padded, spec.named.values())):
        raise UsageError(
            f"pad-and-crop needs images (channels, height, width) with a known value range, got {spec}. "
            "Set the value range, or choose none."
        )
    return (choice,)


def best_divergences(
    model: nn.Module, batches: Iterable[Inputs], spec: Specification, choice: PresentationChoice = "auto"
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
    names = reached_layers(model, blank_inputs(spec, 1, device), spec)
    if not names:
        return "none", {}
    pools = {way: StatisticsPool(model, spec, names) for way in presentations(spec, choice)}
    rng = torch.Generator().manual_seed(0)  # the same shifts for all data
    for batch in batches:
        given = moved(batch, device)
        for way, pool in pools.items():
            pool.add(spec.map(lambda one, tensor, way=way: _presented(tensor, way, one, rng), given))
    stored = stored_statistics(model, spec, names)
    divergences = {way: divergence_of(stored, pool.moments()) for way, pool in pools.items()}
    best = min(divergences, key=lambda way: sum(divergences[way].values()))
    return best, divergences[best]


def _presented(batch: Tensor, way: Presentation, spec: InputSpec, rng: torch.Generator) -> Tensor:
    if way == "none" or not _is_padded(spec):
        return batch
    padding = max(1, min(spec.shape[1:]) // PADDING_SHARE)
    return augment(batch, Augmentation(flip=True, padding=padding), rng, spec.pad_value)


def _is_padded(spec: InputSpec) -> bool:
    """Return whether pad-and-crop applies: to images with a known value range."""
    return len(spec.shape) == 3 and spec.bounds is not None  # noqa: PLR2004
