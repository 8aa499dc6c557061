"""Fine-tuning by distillation: a quantized student learns to reproduce its float teacher's outputs.

Public names are imported on first use, so the options can be listed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.host.lazy_names import lazy_names

if TYPE_CHECKING:
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.loop import train_student
    from dfq_plugins.distillation.loss import DistillationLoss
    from dfq_plugins.distillation.options import TrainingOptions

__all__ = ["DistillationLoss", "TrainingOptions", "TrainingPoint", "train_student"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DistillationLoss": "loss",
        "TrainingOptions": "options",
        "TrainingPoint": "history",
        "train_student": "loop",
    },
)
