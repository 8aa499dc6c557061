"""Settings of the built-in generators. Imports no torch, so that listings stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from dfq_plugins.synthesis.options import InversionOptions
from dfq_plugins.types import setting


@dataclass(frozen=True)
class GaussianOptions:
    """Settings of the `gaussian` generator."""

    clamp: bool = setting(default=True, text="keep the inputs in their valid range")


@dataclass(frozen=True)
class BatchNormOptions(InversionOptions):
    """Settings of the `bns` generator."""


@dataclass(frozen=True)
class InceptionOptions(InversionOptions):
    """Settings of the `inception` generator."""

    batch_norm_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the BatchNorm divergence")
    class_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the class term")
    blur_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the distance from the blurred input")
    l2_weight: Annotated[float, Ge(0)] = setting(0.01, "weight of the mean square of the input")
    jitter: Annotated[int, Ge(0)] = setting(2, "largest random shift, in pixels")
    flip: bool = setting(default=True, text="mirror the last axis half of the time")


@dataclass(frozen=True)
class BatchNormInceptionOptions(InversionOptions):
    """Settings of the `bns+inception` generator."""

    class_weight: Annotated[float, Ge(0)] = setting(0.01, "weight of the class term")


@dataclass(frozen=True)
class NetworkOptions:
    """Settings of every generator that is a network of its own, which learns beside the student."""

    latent: Annotated[int, Gt(0)] = setting(100, "random numbers that one image is made from")
    width: Annotated[int, Gt(1)] = setting(128, "channels inside the generator's network")
    output: Literal["bounded", "batch-norm"] = setting(
        "bounded", "last step of the network: into the valid range, or BatchNorm alone, which may leave it"
    )
    learning_rate: Annotated[float, Gt(0)] = setting(0.001, "Adam step of the generator's network")
    beta1: Annotated[float, Ge(0), Lt(1)] = setting(0.9, "decay of Adam's mean of gradients")
    schedule: Literal["cosine", "constant"] = setting("cosine", "how the learning rate falls over the training")
    gradient_clip: Annotated[float, Gt(0)] | None = setting(5.0, "largest norm of the gradient; none: not clipped")
    student_steps: Annotated[int, Gt(0)] = setting(10, "steps of the student for one of the generator, on one batch")
    warm_up: Annotated[int, Ge(0)] = setting(400, "steps on the teacher alone, before the student's first")
    batch_norm_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the BatchNorm divergence")
    divergence: Literal["kl", "l2"] = setting("kl", "distance between stored and generated statistics")
    padding: Annotated[int, Ge(0)] | None = setting(
        None,
        "shift images over a border of so many pixels before their BatchNorm statistics are taken, as training on "
        "small images does; none: an eighth of the side of color images of 16 to 64 pixels, 0 for others",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "arithmetic of the teacher and the generator")


@dataclass(frozen=True)
class AdversarialOptions(NetworkOptions):
    """Settings of the `adversarial` generator.

    The preset `zhu2020` is the paper's (arXiv 2010.07334); the training has a preset of the same name for the student.
    """

    distance: Literal["kl", "symmetrized-kl", "logit"] = setting(
        "kl", "what the generator raises between teacher and student; logit: the mean squared difference"
    )
    kl_reduction: Literal["batchmean", "mean"] = setting(
        "batchmean", "KL averaged over samples, or over samples and classes"
    )
    temperature: Annotated[float, Gt(0)] = setting(1.0, "what logits are divided by before the KL terms")
    attention_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the distance of the attention maps")
    feature_layers: tuple[str, ...] = setting(
        ("block-ends",), "modules whose input the attention term compares; block-ends finds the ends of all stages"
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
    """Settings of the `gdfq` generator."""

    beta1: Annotated[float, Ge(0), Lt(1)] = setting(0.5, "decay of Adam's mean of gradients")
    student_steps: Annotated[int, Gt(0)] = setting(1, "steps of the student for one of the generator, on one batch")
    class_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the cross-entropy with the wanted class")
    batch_norm_weight: Annotated[float, Ge(0)] = setting(0.1, "weight of the BatchNorm divergence")
    iterations: Annotated[int, Gt(0)] = setting(1000, "steps of the generator where it makes a data set by itself")
    step_samples: Annotated[int, Gt(1)] = setting(128, "images in each of these steps")
    network_seed: Annotated[int, Ge(0)] = setting(
        0, "seed of the network that makes a data set: one network makes all its shards"
    )
