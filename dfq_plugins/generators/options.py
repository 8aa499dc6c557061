"""Settings of the built-in generators. Imports no torch, so that listings stay fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class GaussianOptions:
    """Settings of the `gaussian` generator."""

    clamp: bool = _setting(default=True, text="keep the inputs in their valid range")


@dataclass(frozen=True)
class InversionOptions:
    """Settings of every generator that optimises its inputs against the network.

    The class attributes' defaults are those of `bns`; the other generators override the weights.
    """

    iterations: Annotated[int, Gt(0)] = _setting(100, "optimisation steps")
    learning_rate: Annotated[float, Gt(0)] = _setting(0.25, "Adam step, in units of the input's standard deviation")
    start: Literal["fitted", "white"] = _setting(
        "fitted", "the noise to start from: of the colour and scale that fit the network best, or white"
    )
    schedule: Literal["cosine", "constant"] = _setting("cosine", "how the learning rate falls")
    divergence: Literal["kl", "l2"] = _setting("kl", "distance between stored and synthetic statistics")
    step_samples: Annotated[int, Gt(0)] | None = _setting(None, "samples in one step; none: the whole shard at once")
    statistics: Literal["batch", "set"] = _setting("batch", "match the statistics of each step, or of the shard")
    batch_norm_weight: Annotated[float, Ge(0)] = _setting(1.0, "weight of the BatchNorm divergence")
    class_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the class term")
    class_loss: Literal["logit", "cross-entropy"] = _setting("cross-entropy", "form of the class term")
    blur_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the distance from the blurred input")
    total_variation_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the total variation")
    l2_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the mean square of the input")
    jitter: Annotated[int, Ge(0)] = _setting(0, "largest random shift, in pixels")
    flip: bool = _setting(default=False, text="mirror the last axis half of the time")
    crop: Annotated[float, Gt(0), Le(1)] = _setting(1.0, "smallest side of a random resized crop, as a share")
    border: Annotated[int, Ge(0)] | None = _setting(
        None,
        "shift images over a border of so many pixels, as training on small images does; none: an eighth of the side "
        "of colour images of 16 to 64 pixels, 0 for others",
    )
    clamp: bool = _setting(default=True, text="keep the inputs in their valid range during the optimisation")
    precision: Literal["auto", "float32", "bfloat16"] = _setting("auto", "arithmetic of convolutions and linear layers")
    compile: Literal["auto", "always", "never"] = _setting("auto", "compile the step: auto decides by the work ahead")


@dataclass(frozen=True)
class BatchNormOptions(InversionOptions):
    """Settings of the `bns` generator."""


@dataclass(frozen=True)
class InceptionOptions(InversionOptions):
    """Settings of the `inception` generator."""

    batch_norm_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the BatchNorm divergence")
    class_weight: Annotated[float, Ge(0)] = _setting(1.0, "weight of the class term")
    blur_weight: Annotated[float, Ge(0)] = _setting(1.0, "weight of the distance from the blurred input")
    l2_weight: Annotated[float, Ge(0)] = _setting(0.01, "weight of the mean square of the input")
    jitter: Annotated[int, Ge(0)] = _setting(2, "largest random shift, in pixels")
    flip: bool = _setting(default=True, text="mirror the last axis half of the time")


@dataclass(frozen=True)
class BatchNormInceptionOptions(InversionOptions):
    """Settings of the `bns+inception` generator."""

    class_weight: Annotated[float, Ge(0)] = _setting(0.01, "weight of the class term")
