"""Generators that rebuild inputs from an activation record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import DataError
from dfq_plugins.recording.rebuilding import Loss, RecordGenerator, rectified_distance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dfq_plugins.recording.rebuilding import Loss
    from dfq_plugins.types import InputSpec


class RecordTopGenerator(RecordGenerator):
    """Matches the class's logits at temperature 8: `mean((ReLU(mean + L z) - ReLU(logits / T))^2)`.

    If an input's logit for its class starts below zero, it gets no gradient from it and may remain in another class.

    Source: Lopes et al. 2017, top layer activation statistics.
    """

    statistic = "top"

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw logits for each input's class; see the base class."""
        target = self.record.gaussians("top").sample(labels, rng)
        return lambda units: rectified_distance(target.to(units[-1].device), units[-1]), {}


class RecordAllGenerator(RecordGenerator):
    """Matches every layer's units: the sum over layers of `|ReLU(mean + L z) - ReLU(units)|^2 / width`.

    Each layer's target is drawn independently. Layers that can be negative are compared without ReLU.

    Source: Lopes et al. 2017, all layers activation statistics.
    """

    statistic = "all"

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw the units of every layer for each input's class; see the base class."""
        return self.aim_at("all", labels, rng), {}

    def aim_at(self, name: str, labels: Tensor, rng: torch.Generator) -> Loss:
        """Draw targets from one set of statistics of all layers: `all`, or that of a dropout filter."""
        layers = self.record.info.layers
        targets = [self.record.gaussians(f"{name}.{number}").sample(labels, rng) for number in range(len(layers))]

        def loss(units: list[Tensor]) -> Tensor:
            terms = [
                rectified_distance(target.to(found.device), found)
                if layer.rectified
                else (target.to(found.device) - found).square().mean()
                for layer, target, found in zip(layers, targets, units, strict=True)
            ]
            return torch.stack(terms).sum()

        return loss


class RecordAllDropoutGenerator(RecordAllGenerator):
    """Matches every layer's units in a thinned network, with one of the recorded filters per batch.

    Source: Lopes et al. 2017, all layers activation statistics with dropout.
    """

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Also reject a record without filters; see the base class.

        Raises:
            DataError: the record holds no filters.
        """
        if not self.record.info.dropout_filters:
            raise DataError(
                f"The record {self.record.folder} holds no dropout filters. Use record-all, or record the model again "
                "with --dropout-filters 4."
            )
        super().check_supported(model, spec)

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw a filter and the units of every layer under it; see the base class."""
        number = int(torch.randint(self.record.info.dropout_filters, (1,), generator=rng))
        return self.aim_at(f"dropout.{number}.all", labels, rng), self.record.masks(number)


class RecordSpectralGenerator(RecordGenerator):
    """Matches the units that the strongest graph-Fourier coefficients reconstruct: `sum((V s - units)^2)`.

    The coefficients `s = mean + L z` of an input's class describe all layers at once, so the targets of the layers are
    consistent. This distinguishes spectral records from those of all layers.

    Source: Lopes et al. 2017, spectral methods, all layers.
    """

    statistic = "spectral"

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw coefficients of each input's class; see the base class."""
        target = self.record.gaussians("spectral").sample(labels, rng) @ self.record.tensors["spectral.basis"].T
        return lambda units: summed_squares(target.to(units[0].device), torch.cat(units, 1)), {}


def summed_squares(target: Tensor, found: Tensor) -> Tensor:
    """Return the squared distance of the units `(batch, units)` from their target, summed over units.

    >>> summed_squares(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item()
    5.0
    """
    return (target - found).square().sum(1).mean()


class RecordSpectralPairsGenerator(RecordGenerator):
    """Matches, pair by pair, the units that the strongest coefficients of the pair's graph reconstruct.

    The coefficients of all pairs are drawn jointly, so that a layer in two pairs has consistent targets.

    Source: Lopes et al. 2017, spectral methods, layer pairs.
    """

    statistic = "spectral-pairs"

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw coefficients of each input's class; see the base class."""
        pairs = range(len(self.record.info.layers) - 1)
        bases = [self.record.tensors[f"pairs.{number}.basis"] for number in pairs]
        drawn = self.record.gaussians("pairs").sample(labels, rng)
        parts = torch.split(drawn, [basis.shape[1] for basis in bases], dim=1)
        targets = [part @ basis.T for part, basis in zip(parts, bases, strict=True)]

        def loss(units: list[Tensor]) -> Tensor:
            terms = [
                summed_squares(target.to(first.device), torch.cat((first, second), 1))
                for target, first, second in zip(targets, units, units[1:], strict=False)
            ]
            return torch.stack(terms).sum()

        return loss, {}
