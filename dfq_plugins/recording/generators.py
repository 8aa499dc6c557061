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

    An input whose logit for its class begins below zero gets no gradient from it, and may stay another class's.

    Source: Lopes et al. 2017, top layer activation statistics.
    """

    statistic = "top"

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw logits of each input's class; see the base class."""
        target = self.record.gaussians("top").sample(labels, rng)
        return lambda units: rectified_distance(target.to(units[-1].device), units[-1]), {}


class RecordAllGenerator(RecordGenerator):
    """Matches every layer's units: the sum over layers of `|ReLU(mean + L z) - ReLU(units)|^2 / width`.

    Each layer's target is drawn for itself. Units that were negative in the network are compared without ReLU.

    Source: Lopes et al. 2017, all layers activation statistics.
    """

    statistic = "all"

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw the units of every layer for each input's class; see the base class."""
        return self.aim_at("all", labels, rng), {}

    def aim_at(self, name: str, labels: Tensor, rng: torch.Generator) -> Loss:
        """Draw targets from one set of all layers' statistics: `all`, or that of a dropout filter."""
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
    """Matches every layer's units in a thinned network, with one of the recorded filters for each batch.

    Source: Lopes et al. 2017, all layers activation statistics with dropout.
    """

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Refuse also a record without filters; see the base class.

        Raises:
            DataError: there is none.
        """
        if not self.record.info.dropout_filters:
            raise DataError(
                f"The record {self.record.folder} holds no dropout filter. Use record-all, or record again with "
                "--dropout-filters 4."
            )
        super().check_supported(model, spec)

    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw a filter, and the units of every layer under it; see the base class."""
        number = int(torch.randint(self.record.info.dropout_filters, (1,), generator=rng))
        return self.aim_at(f"dropout.{number}.all", labels, rng), self.record.masks(number)


class RecordSpectralGenerator(RecordGenerator):
    """Matches the units that the strongest graph-Fourier coefficients make up: `sum((V s - units)^2)`.

    The coefficients `s = mean + L z` of an input's class describe all layers at once, so that the layers' targets fit
    together; this is what sets the spectral records apart from those of all layers.

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
    """Matches, pair by pair, the units that the strongest coefficients on the pair's own graph make up.

    The coefficients of all pairs are drawn together, so that a layer that belongs to two pairs has one aim.

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
