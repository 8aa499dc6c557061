"""Fine-tuning by distillation: a quantized student learns to answer as its float teacher does.

Public names are imported on first use, so that the options can be listed without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.loop import distill
    from dfq_plugins.distillation.loss import DistillationLoss
    from dfq_plugins.distillation.options import DistillationOptions

__all__ = ["DistillationLoss", "DistillationOptions", "TrainingPoint", "distill"]

_HOMES = {
    "DistillationLoss": "loss",
    "DistillationOptions": "options",
    "TrainingPoint": "history",
    "distill": "loop",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
