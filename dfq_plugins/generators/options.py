"""Options of the built-in generators. Imports no torch, so that listings stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from dfq_plugins.synthesis.options import InversionOptions
from dfq_plugins.types import setting


@dataclass(frozen=True)
class GaussianOptions:
    """Options of the `gaussian` generator."""

    clamp: bool = setting(default=True, text="keep the inputs in their valid range")


@dataclass(frozen=True)
class BatchNormOptions(InversionOptions):
    """Options of the `bns` generator."""


@dataclass(frozen=True)
class InceptionOptions(InversionOptions):
    """Options of the `inception` generator."""

    batch_norm_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the BatchNorm divergence")
    class_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the class term")
    blur_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the distance from the blurred input")
    l2_weight: Annotated[float, Ge(0)] = setting(0.01, "weight of the mean square of the input")
    jitter: Annotated[int, Ge(0)] = setting(2, "largest random shift, in pixels")
    flip: bool = setting(default=True, text="mirror the last axis half of the time")


@dataclass(frozen=True)
class BatchNormInceptionOptions(InversionOptions):
    """Options of the `bns+inception` generator."""

    class_weight: Annotated[float, Ge(0)] = setting(0.01, "weight of the class term")


@dataclass(frozen=True)
class NetworkOptions:
    """Options of every generator that is a network and learns alongside the student."""

    latent: Annotated[int, Gt(0)] = setting(100, "size of the latent vector")
    width: Annotated[int, Gt(1)] = setting(128, "channels in the generator's network")
    output: Literal["bounded", "batch-norm"] = setting(
        "bounded", "output of the network: squashed into the valid range, or BatchNorm, which may exceed it"
    )
    learning_rate: Annotated[float, Gt(0)] = setting(0.001, "Adam learning rate of the generator's network")
    beta1: Annotated[float, Ge(0), Lt(1)] = setting(0.9, "decay of Adam's mean of gradients")
    schedule: Literal["cosine", "constant"] = setting("cosine", "schedule of the learning rate during training")
    gradient_clip: Annotated[float, Gt(0)] | None = setting(5.0, "largest norm of the gradient; none: not clipped")
    student_steps: Annotated[int, Gt(0)] = setting(10, "student steps per generator step, on one batch")
    warm_up: Annotated[int, Ge(0)] = setting(
        400, "generator steps with only the teacher, before the student's first step"
    )
    batch_norm_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the BatchNorm divergence")
    divergence: Literal["kl", "l2"] = setting("kl", "distance between stored and generated statistics")
    padding: Annotated[int, Ge(0)] | None = setting(
        None,
        "pad and randomly crop images by this many pixels to measure their BatchNorm statistics, as in training on "
        "small images; none: an eighth of the side for color images of 16 to 64 pixels, 0 for others",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "precision of the teacher and the generator")


@dataclass(frozen=True)
class AdversarialOptions(NetworkOptions):
    """Options of the `adversarial` generator.

    The preset `zhu2020` is the paper's (arXiv 2010.07334); the student's training has a preset of the same name.
    """

    distance: Literal["kl", "symmetrized-kl", "logit"] = setting(
        "kl", "distance between teacher and student to maximize; logit: the mean squared difference"
    )
    kl_reduction: Literal["batchmean", "mean"] = setting(
        "batchmean", "KL averaged over samples, or over samples and classes"
    )
    temperature: Annotated[float, Gt(0)] = setting(1.0, "divisor of the logits in the KL terms")
    attention_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the distance between attention maps")
    feature_layers: tuple[str, ...] = setting(
        ("block-ends",), "modules whose inputs the attention term compares; block-ends finds the ends of all stages"
    )
    batch_norm_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the BatchNorm divergence")

    PRESETS = MappingProxyType(
        {
            "zhu2020": {
                "latent": 100,
                "width": 128,
                "output": "batch-norm",
                "learning_rate": 0.001,
                "beta1": 0.9,
                "schedule": "cosine",
                "gradient_clip": 5.0,
                "student_steps": 10,
                "warm_up": 0,
                "batch_norm_weight": 0.0,
                "distance": "kl",
                "kl_reduction": "mean",
                "temperature": 1.0,
                "attention_weight": 250.0,
                "precision": "float32",
            }
        }
    )


@dataclass(frozen=True)
class GdfqOptions(NetworkOptions):
    """Options of the `gdfq` generator."""

    beta1: Annotated[float, Ge(0), Lt(1)] = setting(0.5, "decay of Adam's mean of gradients")
    student_steps: Annotated[int, Gt(0)] = setting(1, "student steps per generator step, on one batch")
    class_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the cross-entropy with the target class")
    batch_norm_weight: Annotated[float, Ge(0)] = setting(0.1, "weight of the BatchNorm divergence")
    iterations: Annotated[int, Gt(0)] = setting(1000, "generator steps to make a data set without a student")
    step_samples: Annotated[int, Gt(1)] = setting(128, "images per step to make a data set")
    network_seed: Annotated[int, Ge(0)] = setting(
        0, "seed of the network that makes a data set; one network makes all shards"
    )
