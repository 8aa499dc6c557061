"""Pruning without data: filter removal, sparsity of individual weights, and lottery tickets.

Public names are imported on first use, so the options can be listed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.host.lazy_names import lazy_names

if TYPE_CHECKING:
    from dfq_plugins.pruning.options import PruneTrainingOptions, PruningOptions
    from dfq_plugins.pruning.run import PrunedLayer, PruneRun, prune
    from dfq_plugins.pruning.ticket import Ticket

__all__ = ["PruneRun", "PruneTrainingOptions", "PrunedLayer", "PruningOptions", "Ticket", "prune"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PrunedLayer": "run",
        "PruningOptions": "options",
        "PruneRun": "run",
        "PruneTrainingOptions": "options",
        "Ticket": "ticket",
        "prune": "run",
    },
)
