"""Settings of fine-tuning by distillation. Imports no torch, so that listings stay fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

BLOCK_ENDS = "block-ends"
"""The tap that stands for the ends of all stages, found in the network itself."""


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DistillationOptions:
    """How a student is trained on its teacher's answers.

    Learning rates are relative: a step of Adam moves a weight by about this share of the root mean square of its output
    channel, and a quantizer scale by this share of itself, so that one setting fits layers of any size.

    The preset `zhu2020` is the paper's (arXiv 2010.07334), for quantization; it goes with the generator `adversarial`
    under the preset of the same name.
    """

    steps: Annotated[int, Gt(0)] = _setting(600, "training steps")
    batch_size: Annotated[int, Gt(0)] = _setting(64, "samples in a step, over all processes together")
    max_seconds: Annotated[float, Gt(0)] | None = _setting(
        None, "most seconds of training; the schedule is compressed into them where the steps would take longer"
    )
    learning_rate: Annotated[float, Ge(0)] = _setting(0.004, "Adam step of weights, as a share of their size")
    scale_learning_rate: Annotated[float, Ge(0)] = _setting(
        0.0004, "Adam step of learned quantizer scales, as a share of their size"
    )
    warm_up: Annotated[float, Ge(0), Lt(1)] = _setting(0.05, "share of the steps in which the learning rate rises")
    gradient_clip: Annotated[float, Gt(0)] | None = _setting(5.0, "largest norm of the gradient; none: not clipped")
    learning_rate_unit: Literal["relative", "absolute"] = _setting(
        "relative", "both rates: as a share of each tensor's size, or as they are"
    )
    kl_weight: Annotated[float, Ge(0)] = _setting(1.0, "weight of the KL divergence of the class probabilities")
    symmetrized_kl_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the KL divergence in both directions")
    kl_mean: Literal["batch", "elements"] = _setting(
        "batch", "both KL terms: per sample, or also divided by the number of classes"
    )
    temperature: Annotated[float, Gt(0)] = _setting(4.0, "what logits are divided by before both KL terms")
    logit_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the mean squared difference of the logits")
    label_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the cross-entropy with hard labels")
    feature_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the features' normalised squared difference")
    attention_weight: Annotated[float, Ge(0)] = _setting(0.0, "weight of the distance of the attention maps")
    taps: tuple[str, ...] = _setting(
        (BLOCK_ENDS,), "modules whose input is compared by the features and attention terms; block-ends finds them"
    )
    batch_norm: Literal["frozen", "reestimated"] | None = _setting(
        None,
        "statistics of BatchNorm layers: kept as trained, or estimated anew on the synthetic data; none: kept, but "
        "estimated anew beside binary weights",
    )
    freeze_ranges: Annotated[float, Ge(0), Le(1)] = _setting(
        0.5, "share of the training after which quantizers stop observing ranges, where a framework observes them"
    )
    mixup: Annotated[float, Ge(0)] = _setting(0.0, "parameter of the Beta distribution of mixup; 0 turns it off")
    jitter: Annotated[int, Ge(0)] = _setting(0, "largest random shift, in pixels")
    flip: bool = _setting(default=False, text="mirror the last axis half of the time")
    crop: Annotated[float, Gt(0), Le(1)] = _setting(1.0, "smallest side of a random resized crop, as a share")
    border: Annotated[int, Ge(0)] | None = _setting(
        None,
        "shift images over a border of so many pixels, and mirror them, as training on small images does; none: an "
        "eighth of the side of colour images of 16 to 64 pixels, 0 for others",
    )
    held_out: Annotated[float, Gt(0), Lt(1)] = _setting(0.1, "share of the data that only selects the best state")
    evaluations: Annotated[int, Gt(0)] = _setting(20, "how often the held-out data is looked at, a checkpoint each")
    teacher_precision: Literal["auto", "float32", "bfloat16"] = _setting(
        "auto", "arithmetic of the teacher; auto takes bfloat16 where the hardware has it"
    )
    compile: bool = _setting(default=False, text="compile the student's forward and backward pass")
    seed: Annotated[int, Ge(0)] = _setting(0, "seed of the order of the data, of mixup and augmentation")

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
                "kl_mean": "elements",
                "temperature": 1.0,
                "attention_weight": 250.0,
                "border": 0,
                "batch_norm": "reestimated",
                "teacher_precision": "float32",
            }
        }
    )

    @property
    def augments(self) -> bool:
        """Whether the inputs of a step differ from those of the data set.

        >>> DistillationOptions(border=0).augments, DistillationOptions(flip=True).augments
        (False, True)
        """
        return bool(self.mixup or self.jitter or self.flip or self.crop < 1 or self.border != 0)

    @property
    def compares_features(self) -> bool:
        """Whether a term looks inside the networks."""
        return bool(self.feature_weight or self.attention_weight)
