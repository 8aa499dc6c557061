"""Pruning without data: filters removed, single weights set to zero, and lottery tickets.

Public names are imported on first use, so that the options can be listed without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfq_plugins.pruning.options import PruneTrainingOptions, PruningOptions
    from dfq_plugins.pruning.run import PrunedLayer, PruneRun, prune
    from dfq_plugins.pruning.ticket import Ticket

__all__ = ["PruneRun", "PruneTrainingOptions", "PrunedLayer", "PruningOptions", "Ticket", "prune"]

_HOMES = {
    "PrunedLayer": "run",
    "PruningOptions": "options",
    "PruneRun": "run",
    "PruneTrainingOptions": "options",
    "Ticket": "ticket",
    "prune": "run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
