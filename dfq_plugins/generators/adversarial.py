"""Adversarial images: a network learns to generate images on which teacher and student disagree."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.distillation import terms
from dfq_plugins.distillation.feature_hooks import FeatureHooks, resolve_feature_layers
from dfq_plugins.distillation.loss import attention_over
from dfq_plugins.errors import UsageError
from dfq_plugins.generators.network import NetworkGenerator
from dfq_plugins.model_state import untouched
from dfq_plugins.network.outputs import class_scores, matching_outputs
from dfq_plugins.network.specification import require_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dfq_plugins.distillation.feature_hooks import FeaturePair
    from dfq_plugins.generators.options import AdversarialOptions
    from dfq_plugins.types import InputSpec


class AdversarialGenerator(NetworkGenerator):
    """Maximizes the distance between teacher and student, which the student minimizes on the same images.

    `min_student max_generator E_z[D(T(G(z)), S(G(z))) + R_a]`, minus `batch_norm_weight` times the divergence of the
    BatchNorm statistics for the generator. Source: Zhu et al. 2020 (arXiv 2010.07334), section 3; statistics combined
    with a disagreement as in GDFQ (Xu et al. 2020) and ZAQ (Liu et al. 2021).
    """

    options: AdversarialOptions

    def __init__(self, options: AdversarialOptions) -> None:
        super().__init__(options)

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Reject an unsupported model or specification; see `NetworkGenerator`."""
        super().check_supported(model, spec)
        if self.options.distance != "logit":
            need = f"The distance {self.options.distance} compares class probabilities; distance=logit compares values."
            require_classes(model, spec, need)

    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        """Build a fresh network."""
        super().begin(teacher, spec, rng)
        self._feature_pairs: tuple[FeaturePair, ...] | None = None

    @property
    def learns_alone(self) -> bool:
        """Whether there are statistics to learn without a student."""
        return self.teacher.matches

    def renew(self, size: int) -> None:
        """Take one step and keep its images."""
        if self._student is None:
            raise UsageError(
                "The adversarial generator needs a student: call feedback(student) before each batch(size)."
            )
        super().renew(size)

    def step(self, size: int, student: nn.Module | None) -> tuple[Tensor, Tensor]:
        """Take one step against the current student, which is not changed."""
        with nullcontext() if student is None else untouched(student):
            return super().step(size, student)

    def loss(self, images: Tensor, labels: Tensor, student: nn.Module | None) -> Tensor:  # noqa: ARG002  no classes
        """Return the weighted divergence minus the distance of the outputs; without a student, only the divergence."""
        distance = images.new_zeros(()) if student is None else self._distance(images, student)
        if not self.teacher.matches:
            return -distance
        _, divergence = self.teacher.answer_as_trained(images, self.rng)
        return self.options.batch_norm_weight * divergence - distance

    def _distance(self, images: Tensor, student: nn.Module) -> Tensor:
        if not self.options.attention_weight:
            return self._disagreement(student(images.clone()), self.teacher.answer(images))
        if self._feature_pairs is None:
            self._feature_pairs = resolve_feature_layers(
                self.options.feature_layers, self.teacher.model, student, images.detach()
            )
        with (
            FeatureHooks(self.teacher.model, [pair.teacher for pair in self._feature_pairs]) as theirs,
            FeatureHooks(student, [pair.student for pair in self._feature_pairs]) as ours,
        ):
            distance = self._disagreement(student(images.clone()), self.teacher.answer(images))
            attention = attention_over(ours.collect(), theirs.collect())
        return distance + self.options.attention_weight * attention

    def _disagreement(self, returned: Any, answers: Mapping[str, Tensor]) -> Tensor:
        """Return the mean distance over the outputs, or over those with class logits."""
        outputs = matching_outputs(returned, answers)
        if self.options.distance == "logit":
            found = [terms.logit_difference(outputs[name].float(), answer) for name, answer in answers.items()]
            return torch.stack(found).mean()
        term = terms.kl_divergence if self.options.distance == "kl" else terms.symmetrized_kl
        classes = self.spec.num_classes or 0
        share = 1 / classes if self.options.kl_reduction == "mean" else 1.0
        pairs = (
            (class_scores(outputs[name].float(), classes), class_scores(answers[name], classes)) for name in answers
        )
        found = [
            term(ours, theirs, self.options.temperature)
            for ours, theirs in pairs
            if ours is not None and theirs is not None
        ]
        return share * torch.stack(found).mean()
