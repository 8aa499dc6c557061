"""`DistillationLoss`: how far a student's outputs are from its teacher's, as a drop-in loss for any training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.distillation import terms
from dfq_plugins.distillation.feature_hooks import FeatureHooks, resolve_feature_layers
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.distillation.task_loss import TaskBatch, resolve_task_loss, task_term
from dfq_plugins.errors import UsageError, nearest
from dfq_plugins.host.options import parse_options
from dfq_plugins.inputs import cloned, count, device_of_inputs, moved, run_network
from dfq_plugins.model_state import device_of, frozen_copy
from dfq_plugins.network.outputs import class_scores, matching_outputs, sample_outputs
from dfq_plugins.network.precision import use_bfloat16

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dfq_plugins.types import Inputs, Specification

_PLACES = 3
"""A feature with at least this many axes has spatial positions: (batch, channels, *spatial)."""


class DistillationLoss(nn.Module):
    """Weighted sum of the terms of `TrainingOptions`, between a student and a frozen copy of the teacher.

    In your own training loop, it replaces `loss = criterion(model(inputs), labels)`::

        criterion = DistillationLoss(teacher, num_classes=10)
        for inputs, labels, _ in data.loader(batch_size=64, shuffle=True):
            loss = criterion(student(inputs), inputs)

    The networks may return any structure of tensors. The outputs of both are compared by name: class logits, also those
    of each pixel, by their probabilities, and all other outputs by their difference as a share of the teacher's
    variance. All outputs have the same weight, unless the options say otherwise.

    The feature and attention terms read intermediate features of the student: pass the student, with a few inputs to
    find its layers. The loss registers hooks on the student and removes them in `close()`.

    Args:
        teacher: float network; the loss uses a frozen copy.
        options: weights and temperature, as a record or a mapping; schedule settings are ignored here.
        num_classes: number of class logits of the teacher; None or 0 if it is not a classifier.
        student: the network to hook into; only needed for feature terms.
        sample: a few inputs `(batch, *shape)` for both networks; only needed for feature terms.
        spec: says how the networks take several inputs; None means by keywords.

    Raises:
        UsageError: all weights are zero, feature terms lack `student` and `sample`, or a layer name or the task loss is
            unknown.
        ModelError: the student lacks a layer to compare.
    """

    def __init__(
        self,
        teacher: nn.Module,
        options: TrainingOptions | Mapping[str, object] | None = None,
        *,
        num_classes: int | None = None,
        student: nn.Module | None = None,
        sample: Inputs | None = None,
        spec: Specification | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.options = parse_options(TrainingOptions, options, owner="fine-tuning")
        self.num_classes = num_classes
        require_a_term(self.options)
        self._task_loss = resolve_task_loss(self.options.task_loss)
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
    def teacher_outputs(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the teacher's outputs by name, each `(batch, ...)` in float32, for inputs `(batch, *shape)`."""
        given = moved(cloned(inputs), device_of(self.teacher))  # the network may overwrite them
        with torch.autocast(device_of(self.teacher).type, dtype=torch.bfloat16, enabled=self._half):
            answers = sample_outputs(run_network(self.teacher, given, self.spec), count(inputs))
        return {name: answer.float() for name, answer in answers.items()}

    def forward(
        self,
        outputs: Any,
        inputs: Inputs,
        labels: Tensor | None = None,
        *,
        answers: Mapping[str, Tensor] | None = None,
        targets: Any = None,
    ) -> Tensor:
        """Return the weighted sum of the terms, a scalar.

        Args:
            outputs: what the student returned for `inputs`.
            inputs: `(batch, *shape)`.
            labels: classes `(batch,)` or class probabilities `(batch, classes)` for the hard-label term; None uses the
                teacher's predictions.
            answers: the teacher's outputs by name, if already computed.
            targets: targets for the task loss; None takes the labels.

        Raises:
            ModelError: student and teacher return different outputs.
            UsageError: the options name an output that the teacher does not return, or the label term lacks logits.
        """
        if answers is None or self._feature_hooks is not None:
            answers = self.teacher_outputs(inputs)
        found = {name: output.float() for name, output in matching_outputs(outputs, answers).items()}
        self.latest = self._terms(found, answers, labels)
        if self._task_loss is not None:
            self.latest["task"] = self.task(outputs, inputs, answers, labels if targets is None else targets)
        total = torch.zeros((), device=next(iter(answers.values())).device)
        for name, term in self.latest.items():
            total = total + getattr(self.options, f"{name}_weight") * term
        self.latest = {name: term.detach() for name, term in self.latest.items()}
        return total

    def task(self, outputs: Any, inputs: Inputs, answers: Mapping[str, Tensor], targets: Any) -> Tensor:
        """Return the value of the task loss, a scalar; 0 without one."""
        if self._task_loss is None:
            return torch.zeros((), device=device_of_inputs(inputs))
        return task_term(self._task_loss, outputs, TaskBatch(inputs, targets, answers))

    def shares(self, answers: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the weight of each output that is trained on; the sum is 1.

        Raises:
            UsageError: the options name an output that the teacher does not return, or all weights are 0.
        """
        given = self.options.weight_of_outputs
        for name in given:
            if name not in answers:
                raise UsageError(
                    f"output_weights names {name!r}, but the outputs are {', '.join(answers)}.{nearest(name, answers)}"
                )
        weights = {name: given.get(name, 1.0) for name in answers}
        total = sum(weights.values())
        if not total:
            raise UsageError("All output_weights are 0, so nothing is learned. Leave out output_weights.")
        return {name: weight / total for name, weight in weights.items() if weight}

    def close(self) -> None:
        """Remove the hooks from the student."""
        for hooks in self._feature_hooks or ():
            hooks.close()
        self._feature_hooks = None

    def _terms(
        self, outputs: Mapping[str, Tensor], answers: Mapping[str, Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the weighted mean of each term over the outputs that it applies to."""
        found: dict[str, Tensor] = {}
        for output, share in self.shares(answers).items():
            for name, term in self._output_terms(outputs[output], answers[output], labels).items():
                found[name] = share * term + found.get(name, 0.0)
        if self.options.label_weight and "label" not in found:
            raise UsageError(
                "The label term needs class logits (batch, classes), and no output is known to hold any. Set "
                "num_classes, or label_weight to 0."
            )
        if self._feature_hooks is not None:
            found |= self._feature_terms(*self._feature_hooks)
        if not found and self._task_loss is None:
            raise UsageError(
                "No term of the distillation loss applies to the outputs, so nothing is learned. Set kl_weight to 1 "
                "for class logits, or distance_weight to 1 for other outputs."
            )
        return found

    def _output_terms(self, output: Tensor, answer: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        options = self.options
        ours, theirs = (class_scores(part, self.num_classes) for part in (output, answer))
        if ours is None or theirs is None:
            return {"distance": terms.scaled_difference(output, answer)} if options.distance_weight else {}
        share = 1 / theirs.shape[1] if options.kl_reduction == "mean" else 1.0
        found: dict[str, Tensor] = {}
        if options.kl_weight:
            found["kl"] = share * terms.kl_divergence(ours, theirs, options.temperature)
        if options.symmetrized_kl_weight:
            found["symmetrized_kl"] = share * terms.symmetrized_kl(ours, theirs, options.temperature)
        if options.logit_weight:
            found["logit"] = terms.logit_difference(ours, theirs)
        if options.label_weight:
            given = labels is not None and len(labels) == len(ours)
            found["label"] = terms.hard_labels(ours, labels if given and labels is not None else theirs.argmax(1))
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
    task = options.task_loss is not None and options.task_weight
    if not (options.compares_outputs or options.compares_features or task):
        raise UsageError("All weights of the distillation loss are 0, so nothing is learned. Set kl_weight to 1.")
