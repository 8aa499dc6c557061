"""Rebuilds inputs from spectral coefficients of each pair of consecutive layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.generators.record_base import Loss, RecordGenerator
from dfq_plugins.generators.record_spectral import squared_distance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


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
                squared_distance(target.to(first.device), torch.cat((first, second), 1))
                for target, first, second in zip(targets, units, units[1:], strict=False)
            ]
            return torch.stack(terms).sum()

        return loss, {}
