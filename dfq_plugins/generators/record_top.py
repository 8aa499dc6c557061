"""Rebuilds inputs from the record of the top layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.generators.record_base import Loss, RecordGenerator, rectified_distance

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor


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
