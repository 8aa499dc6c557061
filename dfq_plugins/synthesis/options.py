"""Options of every synthesis that optimizes inputs against a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from dfq_plugins.types import setting


@dataclass(frozen=True)
class InversionOptions:
    """Options of every generator that optimizes its inputs against the network.

    The defaults are those of `bns`; the other generators override the weights.
    """

    iterations: Annotated[int, Gt(0)] = setting(100, "optimization steps")
    learning_rate: Annotated[float, Gt(0)] = setting(0.25, "Adam step, in units of the input's standard deviation")
    start: Literal["fitted", "white"] = setting(
        "fitted", "noise to start from: with the color and scale that fit the network best, or white"
    )
    schedule: Literal["cosine", "constant"] = setting("cosine", "how the learning rate falls")
    plateau: Annotated[float, Ge(0)] = setting(
        0.0, "stop early if thirty steps lower the loss by less than this fraction; 0: never"
    )
    divergence: Literal["kl", "symmetrized-kl", "l2"] = setting(
        "kl", "distance between stored and synthetic statistics"
    )
    step_samples: Annotated[int, Gt(0)] | None = setting(None, "samples per step; none: the whole shard at once")
    statistics: Literal["batch", "set"] = setting("batch", "match the statistics of each step, or of the whole shard")
    batch_norm_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the BatchNorm divergence")
    class_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the class term")
    class_loss: Literal["logit", "cross-entropy"] = setting("cross-entropy", "form of the class term")
    blur_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the distance from the blurred input")
    total_variation_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the total variation")
    l2_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the mean square of the input")
    jitter: Annotated[int, Ge(0)] = setting(0, "largest random shift, in pixels")
    flip: bool = setting(default=False, text="mirror the last axis half of the time")
    crop: Annotated[float, Gt(0), Le(1)] = setting(1.0, "smallest side of a random resized crop, as a fraction")
    padding: Annotated[int, Ge(0)] | None = setting(
        None,
        "pad and randomly crop images by this many pixels, as in training on small images; none: an eighth of the side "
        "for color images of 16 to 64 pixels, 0 for others",
    )
    clamp: bool = setting(
        default=True, text="keep the inputs valid during optimization: in their range, or standardized"
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "precision of convolutions and linear layers")
    compile: Literal["auto", "always", "never"] = setting("auto", "compile the step; auto: if the work is worth it")
