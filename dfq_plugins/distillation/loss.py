"""`DistillationLoss`: how far a student's outputs are from its teacher's, as a drop-in loss for any training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfq_plugins.distillation import terms
from dfq_plugins.distillation.feature_hooks import FeatureHooks, resolve_feature_layers
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.host.options import parse_options
from dfq_plugins.inputs import cloned, moved, run_network
from dfq_plugins.model_state import device_of, frozen_copy
from dfq_plugins.network.precision import use_bfloat16

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dfq_plugins.types import Inputs, Specification

_PLACES = 3
"""A feature with at least this many axes has spatial positions: (batch, channels, *spatial)."""


class DistillationLoss(nn.Module):
    """Weighted sum of the terms of `TrainingOptions`, between a student and a frozen copy of the teacher.

    In your own training loop, it replaces `loss = criterion(model(inputs), labels)`::

        criterion = DistillationLoss(teacher)
        for inputs, labels, _ in data.loader(batch_size=64, shuffle=True):
            loss = criterion(student(inputs), inputs)

    The feature and attention terms read intermediate features of the student: pass the student, with a few inputs to
    find its layers. The loss registers hooks on the student and removes them in `close()`.

    Args:
        teacher: float network; the loss uses a frozen copy.
        options: weights and temperature, as a record or a mapping; schedule settings are ignored here.
        student: the network to hook into; only needed for feature terms.
        sample: a few inputs `(batch, *shape)` for both networks; only needed for feature terms.
        spec: says how the networks take several inputs; None means by keywords.

    Raises:
        UsageError: all weights are zero, feature terms lack `student` and `sample`, or a layer name is unknown.
        ModelError: the student lacks a layer to compare.
    """

    def __init__(
        self,
        teacher: nn.Module,
        options: TrainingOptions | Mapping[str, object] | None = None,
        *,
        student: nn.Module | None = None,
        sample: Inputs | None = None,
        spec: Specification | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.options = parse_options(TrainingOptions, options, owner="fine-tuning")
        require_a_term(self.options)
        # Not a submodule: optimizers and checkpoints of the loss must not see the teacher's weights.
        self._teacher = (frozen_copy(teacher),)
        self._half = use_bfloat16(self.options.teacher_precision, device_of(teacher))
        self._feature_hooks: tuple[FeatureHooks, FeatureHooks] | None = None
        if self.options.compares_features:
            if student is None or sample is None:
                raise UsageError(
                    "The feature and attention terms read the student's features: call DistillationLoss(teacher, "
                    "options, student=..., sample=inputs), or set feature_weight and attention_weight to 0."
                )
            pairs = resolve_feature_layers(self.options.feature_layers, self.teacher, student, sample, spec)
            self._feature_hooks = (
                FeatureHooks(self.teacher, [pair.teacher for pair in pairs]).open(),
                FeatureHooks(student, [pair.student for pair in pairs]).open(),
            )
        self.latest: dict[str, Tensor] = {}
        """The terms of the last call before weighting, detached."""

    @property
    def teacher(self) -> nn.Module:
        """The frozen copy of the teacher."""
        return self._teacher[0]

    @torch.no_grad()
    def teacher_outputs(self, inputs: Inputs) -> Tensor:
        """Return the teacher's outputs `(batch, ...)` for inputs `(batch, *shape)`, in float32."""
        given = moved(cloned(inputs), device_of(self.teacher))  # the network may overwrite them
        with torch.autocast(device_of(self.teacher).type, dtype=torch.bfloat16, enabled=self._half):
            answers: Tensor = run_network(self.teacher, given, self.spec)
        return answers.float()

    def forward(
        self, outputs: Tensor, inputs: Inputs, labels: Tensor | None = None, *, answers: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum of the terms, a scalar.

        Args:
            outputs: the student's outputs for `inputs`, `(batch, classes)` or another shape.
            inputs: `(batch, *shape)`.
            labels: classes `(batch,)` or class probabilities `(batch, classes)` for the hard-label term; None uses the
                teacher's predictions.
            answers: the teacher's outputs, if already computed.

        Raises:
            ModelError: student and teacher return different shapes.
        """
        if answers is None or self._feature_hooks is not None:
            answers = self.teacher_outputs(inputs)
        check_same_shape(answers, outputs)
        self.latest = self._terms(outputs.float(), answers, labels)
        weights = self.options
        total = outputs.new_zeros(())
        for name, term in self.latest.items():
            total = total + getattr(weights, f"{name}_weight") * term
        self.latest = {name: term.detach() for name, term in self.latest.items()}
        return total

    def close(self) -> None:
        """Remove the hooks from the student."""
        for hooks in self._feature_hooks or ():
            hooks.close()
        self._feature_hooks = None

    def _terms(self, outputs: Tensor, answers: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        options = self.options
        share = 1 / outputs.shape[-1] if options.kl_reduction == "mean" else 1.0
        if options.kl_weight:
            found["kl"] = share * terms.kl_divergence(_logits(outputs), answers, options.temperature)
        if options.symmetrized_kl_weight:
            found["symmetrized_kl"] = share * terms.symmetrized_kl(_logits(outputs), answers, options.temperature)
        if options.logit_weight:
            found["logit"] = terms.logit_difference(outputs, answers)
        if options.label_weight:
            found["label"] = terms.hard_labels(_logits(outputs), answers.argmax(1) if labels is None else labels)
        if self._feature_hooks is not None:
            found |= self._feature_terms(*self._feature_hooks)
        return found

    def _feature_terms(self, teacher: FeatureHooks, student: FeatureHooks) -> dict[str, Tensor]:
        pairs = [
            (ours.float(), theirs.float()) for ours, theirs in zip(student.collect(), teacher.collect(), strict=True)
        ]
        found: dict[str, Tensor] = {}
        if self.options.feature_weight:
            found["feature"] = difference_over(*zip(*pairs, strict=True))
        if self.options.attention_weight:
            found["attention"] = attention_over(*zip(*pairs, strict=True))
        return found


def difference_over(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the sum of the feature differences over comparable pairs.

    A pair is comparable if its shapes are equal, or if spatial positions allow fitting a map between its channels.

    Raises:
        UsageError: no pair is comparable.
    """
    found = []
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.shape == theirs.shape:
            found.append(terms.feature_difference(ours, theirs))
        elif ours.ndim >= _PLACES:
            found.append(terms.feature_difference(terms.in_channels_of(ours, theirs), theirs))
    if not found:
        raise UsageError(
            "The feature term needs features of the same shape, or with spatial positions if the channels differ, and "
            "no pair has either. Name convolutions in the option feature_layers, or set feature_weight to 0."
        )
    return torch.stack(found).sum()


def attention_over(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the distance of the attention maps, summed over all features with spatial positions.

    Raises:
        UsageError: no feature has spatial positions.
    """
    pairs = [pair for pair in zip(student, teacher, strict=True) if pair[0].ndim >= _PLACES]
    if not pairs:
        raise UsageError(
            "The attention term compares spatial maps, and no pair of features has spatial positions. Name "
            "convolutions in the option feature_layers, or set attention_weight to 0."
        )
    return torch.stack([terms.attention_distance(*(feature.float() for feature in pair)) for pair in pairs]).sum()


def require_a_term(options: TrainingOptions) -> None:
    """Reject weights that are all zero.

    Raises:
        UsageError: all weights are zero.
    """
    weights = (options.kl_weight, options.symmetrized_kl_weight, options.logit_weight, options.label_weight)
    if not any((*weights, options.compares_features)):
        raise UsageError("All weights of the distillation loss are 0, so nothing is learned. Set kl_weight to 1.")


def check_same_shape(answers: Tensor, outputs: Tensor) -> None:
    """Reject a student whose outputs differ in shape from its teacher's.

    Raises:
        ModelError: the shapes differ.
    """
    if answers.shape != outputs.shape:
        raise ModelError(
            f"Teacher and student must return the same shape, got {tuple(answers.shape)} from the teacher and "
            f"{tuple(outputs.shape)} from the student. Give the float network that the student was made from."
        )


def _logits(outputs: Tensor) -> Tensor:
    if not terms.are_logits(outputs):
        raise UsageError(
            f"The KL and label terms need class logits (batch, classes), got {tuple(outputs.shape)}. For other "
            "networks set kl_weight to 0 and logit_weight to 1."
        )
    return outputs
