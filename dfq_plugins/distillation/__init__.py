"""Fine-tuning by distillation: a quantized student learns to answer as its float teacher does.

Public names are imported on first use, so that the options can be listed without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.loop import train_student
    from dfq_plugins.distillation.loss import DistillationLoss
    from dfq_plugins.distillation.options import TrainingOptions

__all__ = ["DistillationLoss", "TrainingOptions", "TrainingPoint", "train_student"]

_HOMES = {
    "DistillationLoss": "loss",
    "TrainingOptions": "options",
    "TrainingPoint": "history",
    "train_student": "loop",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
