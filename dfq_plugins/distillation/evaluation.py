"""Evaluates a student on examples that it is not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation import terms
from dfq_plugins.distillation.loss import check_same_shape
from dfq_plugins.inputs import cloned, moved, run_network, split
from dfq_plugins.model_state import device_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.loss import DistillationLoss


@dataclass(frozen=True)
class Judgement:
    """How far a student is from its teacher.

    Args:
        loss: KL divergence in nats at the training temperature; mean squared difference if the network is not a
            classifier. At a lower temperature, an uninformative student can score better than an overconfident one.
        error: standard error of `loss`.
        agreement: share of examples for which the student predicts the teacher's class; None if the network is not a
            classifier.
    """

    loss: float
    error: float
    agreement: float | None


class HeldOut:
    """Held-out examples with the teacher's outputs, computed once.

    Args:
        examples: examples to evaluate on.
        loss: provides the teacher.
        batch_size: samples per forward pass.
    """

    def __init__(self, examples: Examples, loss: DistillationLoss, batch_size: int) -> None:
        self._temperature = loss.options.temperature
        self._spec = loss.spec
        self._batches = list(split(examples.inputs, batch_size))
        self._answers = torch.cat([loss.teacher_outputs(batch).cpu() for batch in self._batches])

    @torch.no_grad()
    def judge(self, model: nn.Module) -> Judgement:
        """Return how far the model is from the teacher.

        Raises:
            ModelError: the model returns a different shape than the teacher.
        """
        model.eval()
        device = device_of(model)
        outputs: Tensor = torch.cat(
            [run_network(model, moved(cloned(batch), device), self._spec).float().cpu() for batch in self._batches]
        )
        check_same_shape(self._answers, outputs)
        classifies = terms.are_logits(outputs)
        divergence = partial(terms.kl_divergence, temperature=self._temperature)
        term = divergence if classifies else terms.logit_difference
        pairs = zip(outputs, self._answers, strict=True)
        each = torch.stack([term(output[None], answer[None]) for output, answer in pairs])
        same = (outputs.argmax(1) == self._answers.argmax(1)).float().mean() if classifies else None
        error = each.std(correction=0) / len(each) ** 0.5
        return Judgement(float(each.mean()), float(error), None if same is None else float(same))
