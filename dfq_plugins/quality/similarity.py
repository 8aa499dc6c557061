"""Similarity of data to a network's training data: the divergence of pooled BatchNorm statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, ModelError
from dfq_plugins.inputs import count, leaves
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.network.origin import check_origin
from dfq_plugins.network.trial import check_finite
from dfq_plugins.statistics.batch_norm import require_reached_layers
from dfq_plugins.statistics.presentation import best_divergences, presentations
from dfq_plugins.statistics.requirements import require_batch_norm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn

    from dfq_plugins.statistics.presentation import Presentation, PresentationChoice
    from dfq_plugins.types import Inputs, Specification


@dataclass(frozen=True)
class SimilarityRow:
    """One source in the ranking.

    Args:
        name: name of the source.
        divergence: mean over layers, in nats.
        num_samples: number of pooled samples.
        worst_layer: the layer with the largest divergence.
        augmentation: how the samples were presented: "none" or "pad-and-crop".
    """

    name: str
    divergence: float
    num_samples: int
    worst_layer: str
    augmentation: Presentation = "none"


def rank(
    model: nn.Module,
    spec: Specification,
    sources: Mapping[str, SyntheticDataset | Iterable[Inputs]],
    *,
    augmentation: PresentationChoice = "auto",
    allow_other_network: bool = False,
) -> list[SimilarityRow]:
    """Rank data sets by the divergence of their pooled statistics from those stored in the model, nearest first.

    Source: Haroush et al. 2020, the BN-statistics divergence as a measure of data similarity.

    Each source is presented both as it is and with typical training augmentation; see
    `dfq_plugins.statistics.presentation`.

    Args:
        model: trained network with BatchNorm; not changed.
        spec: input specification.
        sources: synthetic sets, or batches of inputs `(batch, *shape)`, by the name of their data set.
        augmentation: "none" presents all samples as they are; "pad-and-crop" flips them, pads them by an eighth of the
            side with the lowest value, and crops them; "auto" uses the better match for each source, but always "none"
            for large images and for inputs that are not color images with a known value range.
        allow_other_network: only warn of synthetic sets from another network, instead of rejecting them.

    Raises:
        ModelError: the model has no trained BatchNorm statistics, or contains NaN.
        UsageError: pad-and-crop is requested for inputs that are not images with a known value range.
        DataError: a source has no samples, or values that are not finite, or was synthesized from another network.
    """
    presentations(spec, augmentation)
    with preserve_global_state(seed=0):
        network = frozen_copy(model)
        check_finite(network)
        require_batch_norm(network)
        for source in sources.values():
            check_origin(source, network, allow_other_network=allow_other_network)
        require_reached_layers(network, spec)
        measured = (_row(network, spec, augmentation, *item) for item in sources.items())
        return sorted(measured, key=lambda row: row.divergence)


def _row(
    network: nn.Module,
    spec: Specification,
    choice: PresentationChoice,
    name: str,
    batches: SyntheticDataset | Iterable[Inputs],
) -> SimilarityRow:
    counted = _Counted(name, batches.batches() if isinstance(batches, SyntheticDataset) else batches)
    shown, layers = best_divergences(network, counted, spec, choice)
    mean = sum(layers.values()) / len(layers)
    if not math.isfinite(mean):
        wrong = [layer for layer, divergence in layers.items() if not math.isfinite(divergence)]
        raise ModelError(
            f"The statistics of {name} are not finite in {wrong[:5]}: the network returns NaN or infinity for it. "
            "Check the weights and the range of the inputs."
        )
    return SimilarityRow(name, mean, counted.samples, max(layers, key=layers.__getitem__), shown)


class _Counted:
    """Counts the samples that pass through, and rejects values that are not finite."""

    def __init__(self, name: str, batches: Iterable[Inputs]) -> None:
        self.name = name
        self.batches = batches
        self.samples = 0

    def __iter__(self) -> Iterator[Inputs]:
        for batch in self.batches:
            if not all(bool(tensor.isfinite().all()) for tensor in leaves(batch)):
                raise DataError(f"{self.name} contains NaN or infinity. Remove those samples.")
            self.samples += count(batch)
            yield batch
        if not self.samples:
            raise DataError(f"{self.name} contains no samples. Give at least one.")
