"""Rebuilds inputs from the records of all layers, each for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.generators.record_base import Loss, RecordGenerator, rectified_distance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


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
