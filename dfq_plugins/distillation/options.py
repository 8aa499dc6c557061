"""Settings of fine-tuning by distillation. Imports no torch, so that listings stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from dfq_plugins.types import setting

BLOCK_ENDS = "block-ends"
"""The pair that stands for the ends of all stages, found in the network itself."""

USUAL_FEATURE_WEIGHT = 100.0
"""Weight of the features where the stages of teacher and student have the same places."""

USUAL_RATE = 0.004
"""Learning rate of weights of up to 4 bits, as a share of their size."""

FEATURE_HELP = (
    "weight of the features' normalized squared difference, after the best linear map where channels differ; none: "
    f"{USUAL_FEATURE_WEIGHT:g} at those stage ends that have the same places in both networks, 0 beside the attention "
    "term, with hooks of your own and in a loop of your own"
)


@dataclass(frozen=True)
class TrainingOptions:
    """How a student is trained on its teacher's answers.

    Learning rates are relative: a step of Adam moves a weight by about this share of the root mean square of its output
    channel, and a quantizer scale by this share of itself, so that one setting fits layers of any size.

    The preset `zhu2020` is the paper's (arXiv 2010.07334), for quantization; it goes with the generator `adversarial`
    under the preset of the same name.
    """

    steps: Annotated[int, Gt(0)] = setting(600, "training steps")
    batch_size: Annotated[int, Gt(0)] = setting(64, "samples in a step, over all processes together")
    max_seconds: Annotated[float, Gt(0)] | None = setting(
        None, "most seconds of training; the schedule is compressed into them where the steps would take longer"
    )
    learning_rate: Annotated[float, Ge(0)] | None = setting(
        None,
        "Adam step of weights, as a share of their size; none: 0.004, in fine-tuning beyond 4 bits half of it for each "
        "bit more, to 8, and 0.01 beside binary weights",
    )
    scale_learning_rate: Annotated[float, Ge(0)] = setting(
        0.0004, "Adam step of learned quantizer scales, as a share of their size"
    )
    warm_up: Annotated[float, Ge(0), Lt(1)] = setting(0.05, "share of the steps in which the learning rate rises")
    gradient_clip: Annotated[float, Gt(0)] | None = setting(5.0, "largest norm of the gradient; none: not clipped")
    learning_rate_unit: Literal["relative", "absolute"] = setting(
        "relative", "both rates: as a share of each tensor's size, or as they are"
    )
    kl_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the KL divergence of the class probabilities")
    symmetrized_kl_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the KL divergence in both directions")
    kl_reduction: Literal["batchmean", "mean"] = setting(
        "batchmean", "both KL terms: averaged over samples, or over samples and classes"
    )
    temperature: Annotated[float, Gt(0)] = setting(4.0, "what logits are divided by before both KL terms")
    logit_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the mean squared difference of the logits")
    label_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the cross-entropy with hard labels")
    feature_weight: Annotated[float, Ge(0)] | None = setting(0.0, FEATURE_HELP)
    attention_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the distance of the attention maps")
    feature_layers: tuple[str, ...] = setting(
        (BLOCK_ENDS,), "modules whose input is compared by the features and attention terms; block-ends finds them"
    )
    batch_norm: Literal["frozen", "reestimated"] | None = setting(
        None,
        "statistics of BatchNorm layers: kept as trained, or estimated anew on the synthetic data; none: kept, but "
        "estimated anew beside binary weights",
    )
    freeze_ranges: Annotated[float, Ge(0), Le(1)] = setting(
        0.5, "share of the training after which quantizers stop observing ranges, where a framework observes them"
    )
    mixup: Annotated[float, Ge(0)] = setting(0.0, "parameter of the Beta distribution of mixup; 0 turns it off")
    jitter: Annotated[int, Ge(0)] = setting(0, "largest random shift, in pixels")
    flip: bool = setting(default=False, text="mirror the last axis half of the time")
    crop: Annotated[float, Gt(0), Le(1)] = setting(1.0, "smallest side of a random resized crop, as a share")
    padding: Annotated[int, Ge(0)] | None = setting(
        None,
        "shift images over a border of so many pixels, and mirror them, as training on small images does; none: an "
        "eighth of the side of color images of 16 to 64 pixels, 0 for others",
    )
    generator_fraction: Annotated[float, Gt(0), Le(1)] = setting(
        0.5, "share of a batch that a generator beside the student makes; the rest are samples of the data set"
    )
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = setting(
        0.1, "share of the data that only selects the best state"
    )
    num_evaluations: Annotated[int, Gt(0)] = setting(20, "how often the held-out data is looked at, a checkpoint each")
    teacher_precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "arithmetic of the teacher; auto takes bfloat16 where the hardware has it"
    )
    compile: bool = setting(default=False, text="compile the student's forward and backward pass")
    seed: Annotated[int, Ge(0)] = setting(0, "seed of the order of the data, of mixup and augmentation")

    PRESETS = MappingProxyType(
        {
            "zhu2020": {
                "steps": 80_000,
                "batch_size": 128,
                "learning_rate": 0.002,
                "scale_learning_rate": 0.002,
                "learning_rate_unit": "absolute",
                "warm_up": 0.0,
                "gradient_clip": 5.0,
                "kl_weight": 1.0,
                "kl_reduction": "mean",
                "temperature": 1.0,
                "feature_weight": 0.0,
                "attention_weight": 250.0,
                "padding": 0,
                "generator_fraction": 1.0,
                "batch_norm": "reestimated",
                "teacher_precision": "float32",
            },
        }
    )

    @property
    def weight_rate(self) -> float:
        """The learning rate of weights, where none is given the usual one.

        >>> TrainingOptions().weight_rate
        0.004
        """
        return USUAL_RATE if self.learning_rate is None else self.learning_rate

    @property
    def augments(self) -> bool:
        """Whether the inputs of a step differ from those of the data set.

        >>> TrainingOptions(padding=0).augments, TrainingOptions(flip=True).augments
        (False, True)
        """
        return bool(self.mixup or self.jitter or self.flip or self.crop < 1 or self.padding != 0)

    @property
    def compares_features(self) -> bool:
        """Whether a term looks inside the networks."""
        return bool(self.feature_weight or self.attention_weight)


def rate_for(bits: int) -> float:
    """Return the learning rate for quantized values of so many bits.

    A step of a quantizer halves with each bit, and what training mends shrinks with it; so do its steps. Weights behind
    signs must cross zero to change anything.

    >>> [rate_for(bits) for bits in (1, 3, 4, 6, 8, 32)]
    [0.01, 0.004, 0.004, 0.001, 0.00025, 0.00025]
    """
    if bits == 1:
        return 2.5 * USUAL_RATE
    return USUAL_RATE / 2.0 ** min(max(bits - 4, 0), 4)


@dataclass(frozen=True)
class DistillOptions(TrainingOptions):
    """How a student is trained from its first weights: `TrainingOptions` with defaults of its own.

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
