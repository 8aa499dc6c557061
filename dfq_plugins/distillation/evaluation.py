"""Judges a student by examples that it is not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation import terms
from dfq_plugins.distillation.loss import check_same_shape
from dfq_plugins.model_state import device_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.loss import DistillationLoss


@dataclass(frozen=True)
class Judgement:
    """How far a student is from its teacher.

    Args:
        loss: KL divergence in nats at the temperature of the training, since at a lower one a student that answers
            nothing yet can look better than one that is too sure; mean squared difference where the network is no
            classifier.
        error: standard error of that mean.
        agreement: share of examples with the teacher's class; None where the network is no classifier.
    """

    loss: float
    error: float
    agreement: float | None


class HeldOut:
    """Held-out examples with the teacher's answers to them, asked for once.

    Args:
        examples: what to judge by.
        loss: has the teacher.
        batch_size: samples in one forward pass.
    """

    def __init__(self, examples: Examples, loss: DistillationLoss, batch_size: int) -> None:
        self._temperature = loss.options.temperature
        self._batches = torch.split(examples.inputs, batch_size)
        self._answers = torch.cat([loss.teacher_outputs(batch).cpu() for batch in self._batches])

    @torch.no_grad()
    def judge(self, model: nn.Module) -> Judgement:
        """Return how far the model is from the teacher.

        Raises:
            ModelError: the model returns another shape than the teacher.
        """
        model.eval()
        device = device_of(model)
        outputs: Tensor = torch.cat([model(batch.to(device)).float().cpu() for batch in self._batches])
        check_same_shape(self._answers, outputs)
        classifies = terms.are_logits(outputs)
        divergence = partial(terms.kl_divergence, temperature=self._temperature)
        term = divergence if classifies else terms.logit_difference
        pairs = zip(outputs, self._answers, strict=True)
        each = torch.stack([term(output[None], answer[None]) for output, answer in pairs])
        same = (outputs.argmax(1) == self._answers.argmax(1)).float().mean() if classifies else None
        error = each.std(correction=0) / len(each) ** 0.5
        return Judgement(float(each.mean()), float(error), None if same is None else float(same))
