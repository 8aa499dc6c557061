"""Settings of pruning. Does not import torch, so listings stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from dfq_plugins.distillation.options import FEATURE_HELP, TrainingOptions
from dfq_plugins.types import setting


@dataclass(frozen=True)
class PruningOptions:
    """How filters are shrunk and which of them may be removed."""

    sparsity_steps: Annotated[int, Ge(0)] = setting(
        500, "training steps that push BatchNorm scales toward zero before filters are removed"
    )
    press: Literal["chosen", "all"] = setting(
        "chosen", "with a target: push only the scales of filters chosen for removal, or all scales and choose later"
    )
    importance: Literal["answers", "scale"] = setting(
        "answers",
        "with a target: remove the filters whose removal changes the outputs least per MAC saved, or those with the "
        "smallest BatchNorm scale, as in the paper",
    )
    scale_penalty: Annotated[float, Ge(0)] = setting(
        10.0, "weight of the sum of the scales' absolute values, divided by the width of each layer's feature map"
    )
    weight_penalty: Annotated[float, Ge(0)] = setting(
        1e-4, "weight of half the sum of squares of the weights and biases"
    )
    penalty_warm_up: Annotated[float, Ge(0), Lt(1)] = setting(
        0.2, "share of those steps in which the scale penalty rises from zero"
    )
    keep: tuple[str, ...] = setting((), "layers that keep all their filters")
    fewest: Annotated[float, Gt(0), Lt(1)] = setting(
        0.1, "with a target: minimum share of its filters that each layer keeps"
    )


@dataclass(frozen=True)
class PruneTrainingOptions(TrainingOptions):
    """How a network is trained while it is pruned: `TrainingOptions` with different defaults.

    The loss uses the KL divergence in both directions, because a single direction can collapse (Zhu et al. 2020, arXiv
    2010.07334).
    """

    steps: Annotated[int, Gt(0)] = setting(2000, "training steps after the removal")
    learning_rate: Annotated[float, Ge(0)] = setting(0.01, "Adam step size of weights, as a share of their size")
    scale_learning_rate: Annotated[float, Ge(0)] = setting(
        0.03, "Adam step size of the scales while they are pushed toward zero, as a share of their size"
    )
    feature_weight: Annotated[float, Ge(0)] | None = setting(None, FEATURE_HELP)
    kl_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the KL divergence of the class probabilities")
    symmetrized_kl_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the KL divergence in both directions")

    PRESETS = MappingProxyType(
        {
            "zhu2020": {
                **TrainingOptions.PRESETS["zhu2020"],
                "kl_weight": 0.0,
                "symmetrized_kl_weight": 1.0,
                "learning_rate": 0.001,
            }
        }
    )
