"""Rebuilds inputs from spectral coefficients over all layers together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.generators.record_base import Loss, RecordGenerator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


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
        return lambda units: squared_distance(target.to(units[0].device), torch.cat(units, 1)), {}


def squared_distance(target: Tensor, found: Tensor) -> Tensor:
    """Return the squared distance of the units `(batch, units)` from their target, summed over units.

    >>> squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item()
    5.0
    """
    return (target - found).square().sum(1).mean()
