"""Settings of fine-tuning by distillation. Does not import torch, so listings stay fast."""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003  pydantic resolves annotations at run time
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from dfq_plugins.errors import UsageError
from dfq_plugins.types import setting

BLOCK_ENDS = "block-ends"
"""The layer name that means the ends of all stages, found automatically in the network."""

USUAL_FEATURE_WEIGHT = 100.0
"""Default feature weight when the stages of teacher and student have the same spatial size."""

USUAL_RATE = 0.004
"""Default learning rate for weights of up to 4 bits, as a share of their size."""

FEATURE_HELP = (
    "weight of the features' normalized squared difference, after the best linear map if channels differ; none: "
    f"{USUAL_FEATURE_WEIGHT:g} at the stage ends that have the same spatial size in both networks, 0 with the "
    "attention term, with custom feature_layers, or in a custom training loop"
)


@dataclass(frozen=True)
class TrainingOptions:
    """How a student is trained on its teacher's outputs.

    Learning rates are relative: an Adam step moves a weight by about this share of the root mean square of its output
    channel, and a quantizer scale by this share of itself, so one setting fits layers of any size.

    The preset `zhu2020` holds the paper's settings for quantization (arXiv 2010.07334). Use it with the generator
    `adversarial` and the preset of the same name there.
    """

    steps: Annotated[int, Gt(0)] = setting(600, "training steps")
    batch_size: Annotated[int, Gt(0)] = setting(64, "samples per step, over all processes together")
    max_seconds: Annotated[float, Gt(0)] | None = setting(
        None, "maximum seconds of training; if the steps would take longer, the schedule is compressed to fit"
    )
    learning_rate: Annotated[float, Ge(0)] | None = setting(
        None,
        "Adam step size of weights, as a share of their size; none: 0.004, in fine-tuning halved for each bit above 4, "
        "up to 8, and 0.01 with binary weights",
    )
    scale_learning_rate: Annotated[float, Ge(0)] = setting(
        0.0004, "Adam step size of learned quantizer scales, as a share of their size"
    )
    warm_up: Annotated[float, Ge(0), Lt(1)] = setting(0.05, "share of the steps in which the learning rate rises")
    gradient_clip: Annotated[float, Gt(0)] | None = setting(5.0, "maximum gradient norm; none: no clipping")
    learning_rate_unit: Literal["relative", "absolute"] = setting(
        "relative", "unit of both learning rates: a share of each tensor's size, or absolute"
    )
    kl_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of the KL divergence of the class probabilities")
    symmetrized_kl_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the KL divergence in both directions")
    kl_reduction: Literal["batchmean", "mean"] = setting(
        "batchmean", "reduction of both KL terms: mean over samples, or over samples and classes"
    )
    temperature: Annotated[float, Gt(0)] = setting(4.0, "temperature that divides the logits in both KL terms")
    logit_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the mean squared difference of the logits")
    distance_weight: Annotated[float, Ge(0)] = setting(
        1.0,
        "weight of the mean squared difference of the outputs that are not class logits, as a share of their variance",
    )
    output_weights: tuple[str, ...] = setting(
        (), "weights of outputs relative to each other, as name=weight; outputs that are not named have 1"
    )
    task_loss: str | Callable[..., Any] | None = setting(
        None, "your own term: a function of the student's outputs and the batch, or its module:function"
    )
    task_weight: Annotated[float, Ge(0)] = setting(1.0, "weight of task_loss")
    label_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the cross-entropy with hard labels")
    feature_weight: Annotated[float, Ge(0)] | None = setting(0.0, FEATURE_HELP)
    attention_weight: Annotated[float, Ge(0)] = setting(0.0, "weight of the distance of the attention maps")
    feature_layers: tuple[str, ...] = setting(
        (BLOCK_ENDS,), "modules whose inputs the feature and attention terms compare; block-ends: found automatically"
    )
    batch_norm: Literal["frozen", "reestimated"] | None = setting(
        None,
        "BatchNorm statistics: kept as trained, or re-estimated on the synthetic data; none: kept, but re-estimated "
        "with binary weights",
    )
    freeze_ranges: Annotated[float, Ge(0), Le(1)] = setting(
        0.5, "share of the training after which quantizers stop observing ranges, if the framework observes them"
    )
    mixup: Annotated[float, Ge(0)] = setting(0.0, "parameter of the Beta distribution of mixup; 0 turns it off")
    jitter: Annotated[int, Ge(0)] = setting(0, "maximum random shift, in pixels")
    flip: bool = setting(default=False, text="flip the last axis half of the time")
    crop: Annotated[float, Gt(0), Le(1)] = setting(1.0, "minimum side of a random resized crop, as a share")
    padding: Annotated[int, Ge(0)] | None = setting(
        None,
        "pad images by this many pixels, crop them at random, and flip them, as usual for small images; none: an "
        "eighth of the side of color images of 16 to 64 pixels, 0 for others",
    )
    generator_fraction: Annotated[float, Gt(0), Le(1)] = setting(
        0.5, "share of a batch that a learning generator makes; the rest are samples of the data set"
    )
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = setting(
        0.1, "share of the data that is held out to select the best state"
    )
    num_evaluations: Annotated[int, Gt(0)] = setting(
        20, "number of evaluations on the held-out data, each with a checkpoint"
    )
    teacher_precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "precision of the teacher; auto uses bfloat16 if the hardware supports it"
    )
    compile: bool = setting(default=False, text="compile the student's forward and backward pass")
    seed: Annotated[int, Ge(0)] = setting(0, "seed for data order, mixup and augmentation")

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
        """The learning rate of weights; the default if none is given.

        >>> TrainingOptions().weight_rate
        0.004
        """
        return USUAL_RATE if self.learning_rate is None else self.learning_rate

    @property
    def augments(self) -> bool:
        """Whether training inputs differ from those of the data set.

        >>> TrainingOptions(padding=0).augments, TrainingOptions(flip=True).augments
        (False, True)
        """
        return bool(self.mixup or self.jitter or self.flip or self.crop < 1 or self.padding != 0)

    @property
    def weight_of_outputs(self) -> dict[str, float]:
        """The given weights of outputs by name.

        Raises:
            UsageError: a weight is not of the form name=weight, or is negative.

        >>> TrainingOptions(output_weights=("aux=0.4",)).weight_of_outputs
        {'aux': 0.4}
        """
        found = {}
        for text in self.output_weights:
            name, _, weight = text.rpartition("=")
            try:
                found[name] = float(weight)
            except ValueError:
                found[name] = -1.0
            if not name or not 0 <= found[name] < float("inf"):
                raise UsageError(f"An output weight is name=weight, e.g. aux=0.4, got {text!r}.")
        return found

    def as_record(self) -> dict[str, Any]:
        """Return the settings by name as JSON types; a function is given by its module and name."""
        loss = self.task_loss
        name = f"{loss.__module__}:{getattr(loss, '__qualname__', type(loss).__qualname__)}" if callable(loss) else loss
        return asdict(replace(self, task_loss=name))

    @property
    def compares_outputs(self) -> bool:
        """Whether a term compares the outputs with the teacher's."""
        weights = (self.kl_weight, self.symmetrized_kl_weight, self.logit_weight, self.label_weight)
        return any((*weights, self.distance_weight))

    @property
    def compares_features(self) -> bool:
        """Whether a term compares intermediate features."""
        return bool(self.feature_weight or self.attention_weight)


def rate_for(bits: int) -> float:
    """Return the learning rate for quantized weights of this bit width.

    A quantizer's step size halves with each bit, and so does the error that training has to correct; the learning rate
    follows. Binarized weights must cross zero to change anything.

    >>> [rate_for(bits) for bits in (1, 3, 4, 6, 8, 32)]
    [0.01, 0.004, 0.004, 0.001, 0.00025, 0.00025]
    """
    if bits == 1:
        return 2.5 * USUAL_RATE
    return USUAL_RATE / 2.0 ** min(max(bits - 4, 0), 4)


@dataclass(frozen=True)
class DistillOptions(TrainingOptions):
    """How a student is trained from its initial weights: `TrainingOptions` with different defaults.

    The student's BatchNorm layers have no statistics yet, so they are estimated. Its weights have not reached their
    final size yet, so Adam takes absolute rather than relative steps.
    """

    steps: Annotated[int, Gt(0)] = setting(5000, "training steps")
    learning_rate: Annotated[float, Ge(0)] = setting(0.002, "Adam step size of weights")
    learning_rate_unit: Literal["relative", "absolute"] = setting(
        "absolute", "unit of both learning rates: a share of each tensor's size, or absolute"
    )
    feature_weight: Annotated[float, Ge(0)] | None = setting(None, FEATURE_HELP)
    batch_norm: Literal["frozen", "reestimated"] | None = setting(
        "reestimated", "BatchNorm statistics: kept as they are, or estimated on the synthetic data"
    )
