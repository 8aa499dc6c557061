"""Settings for the training of a student that begins with weights of its own. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from dfq_plugins.distillation.options import FEATURE_HELP, DistillationOptions
from dfq_plugins.options import setting


@dataclass(frozen=True)
class StudentTraining(DistillationOptions):
    """How a student is trained from its first weights: `DistillationOptions` with defaults of its own.

    Its BatchNorm layers have no statistics yet, so they estimate them; and weights that are still to find their size
    take steps of the usual size rather than in proportion to what they are.
    """

    steps: Annotated[int, Gt(0)] = setting(5000, "training steps")
    learning_rate: Annotated[float, Ge(0)] = setting(0.002, "Adam step of weights")
    learning_rate_unit: Literal["relative", "absolute"] = setting(
        "absolute", "both rates: as a share of each tensor's size, or as they are"
    )
    feature_weight: Annotated[float, Ge(0)] | None = setting(None, FEATURE_HELP)
    batch_norm: Literal["frozen", "reestimated"] | None = setting(
        "reestimated", "statistics of BatchNorm layers: kept as they are, or estimated on the synthetic data"
    )
