"""Evaluates a student on examples that it is not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation import terms
from dfq_plugins.errors import ModelError
from dfq_plugins.inputs import cloned, run_network
from dfq_plugins.model_state import device_of
from dfq_plugins.network.outputs import class_scores, joined_outputs, matching_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.loss import DistillationLoss


@dataclass(frozen=True)
class Judgement:
    """How far a student is from its teacher.

    Args:
        loss: weighted mean over the outputs: KL divergence in nats at the training temperature for class logits, mean
            over the positions of a map; squared difference as a share of the teacher's variance for the rest; plus the
            task loss. At a lower temperature, an uninformative student can score better than an overconfident one.
        error: standard error of `loss`.
        agreement: share of examples, or of a map's positions, for which the student predicts the teacher's class in the
            first output with classes; None if there is none.
    """

    loss: float
    error: float
    agreement: float | None


class HeldOut:
    """Held-out examples with the teacher's outputs, computed once.

    Args:
        examples: examples to evaluate on.
        loss: provides the teacher, the weights of its outputs, and the task loss.
        batch_size: samples per forward pass.

    Raises:
        ModelError: the teacher returns NaN or infinity.
    """

    def __init__(self, examples: Examples, loss: DistillationLoss, batch_size: int) -> None:
        self._loss, self._classes = loss, loss.num_classes
        places = torch.split(torch.arange(len(examples)), batch_size)
        self._batches = [examples.take(place) for place in places]
        self._answers = [
            {name: answer.cpu() for name, answer in loss.teacher_outputs(batch.inputs).items()}
            for batch in self._batches
        ]
        every = joined_outputs(self._answers)
        require_finite(every)
        self._shares = loss.shares(every)
        self._scales = {name: terms.output_scale(answer) for name, answer in every.items()}

    @torch.no_grad()
    def judge(self, model: nn.Module) -> Judgement:
        """Return how far the model is from the teacher.

        Raises:
            ModelError: the model returns other outputs than the teacher.
        """
        model.eval()
        device, losses, same = device_of(model), [], []
        for batch, answers in zip(self._batches, self._answers, strict=True):
            moved = batch.map(lambda part: part.to(device))
            returned = run_network(model, cloned(moved.inputs), self._loss.spec)
            outputs = {name: part.float().cpu() for name, part in matching_outputs(returned, answers).items()}
            each = self._each(outputs, answers)
            if self._loss.options.task_loss is not None:
                theirs = {name: answer.to(device) for name, answer in answers.items()}
                targets = moved.labels if moved.targets is None else moved.targets
                term = self._loss.task(returned, moved.inputs, theirs, targets).cpu()
                each = each + self._loss.options.task_weight * term
            losses.append(each)
            same += self._same(outputs, answers)
        every = torch.cat(losses)
        error = every.std(correction=0) / len(every) ** 0.5
        return Judgement(float(every.mean()), float(error), float(torch.cat(same).mean()) if same else None)

    def _each(self, outputs: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted distance of each sample over all outputs, `(batch,)`."""
        found = torch.zeros(len(next(iter(answers.values()))))
        if not self._loss.options.compares_outputs:
            return found
        for name, share in self._shares.items():
            ours, theirs = (class_scores(part[name], self._classes) for part in (outputs, answers))
            if ours is None or theirs is None:
                distances = (outputs[name] - answers[name]).square() / self._scales[name]
            else:
                distances = terms.kl_of_each(ours, theirs, self._loss.options.temperature)
            found += share * distances.reshape(len(found), -1).mean(1)
        return found

    def _same(self, outputs: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> list[Tensor]:
        """Return where the classes of the first output with classes agree; nothing if there is none."""
        for name, answer in answers.items():
            ours, theirs = (class_scores(part, self._classes) for part in (outputs[name], answer))
            if ours is not None and theirs is not None:
                finite = ours.isfinite().all(1) & theirs.isfinite().all(1)
                return [((ours.argmax(1) == theirs.argmax(1)) & finite).float()]
        return []


def require_finite(answers: Mapping[str, Tensor]) -> None:
    """Reject a teacher whose outputs hold NaN or infinity: nothing can be learned from them.

    Raises:
        ModelError: names the output.
    """
    for name, answer in answers.items():
        wrong = int((~answer.isfinite()).reshape(len(answer), -1).any(1).sum())
        if wrong:
            raise ModelError(
                f"The teacher's outputs must be finite, but {name!r} holds NaN or infinity for {wrong} of "
                f"{len(answer)} samples. Check the range of the inputs, or give that output the weight 0 in "
                "output_weights and return finite values for it."
            )
