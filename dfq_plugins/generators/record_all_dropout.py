"""Rebuilds inputs from the records of all layers under dropout filters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import DataError
from dfq_plugins.generators.record_all import RecordAllGenerator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dfq_plugins.generators.record_base import Loss
    from dfq_plugins.types import InputSpec


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
