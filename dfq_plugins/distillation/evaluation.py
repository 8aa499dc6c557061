"""Judges a student by examples that it is not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation import terms
from dfq_plugins.distillation.loss import check_same_shape
from dfq_plugins.model_state import device_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.loss import DistillationLoss

_CLASSIFIER_AXES = 2


class HeldOut:
    """Held-out examples with the teacher's answers to them, asked for once.

    Args:
        examples: what to judge by.
        loss: has the teacher.
        batch_size: samples in one forward pass.
    """

    def __init__(self, examples: Examples, loss: DistillationLoss, batch_size: int) -> None:
        self._batches = torch.split(examples.inputs, batch_size)
        self._answers = torch.cat([loss.teach(batch).cpu() for batch in self._batches])

    @torch.no_grad()
    def judge(self, model: nn.Module) -> tuple[float, float | None]:
        """Return the divergence from the teacher, and the share of examples with the teacher's class.

        The divergence is KL at temperature 1 in nats. Where the network is no classifier, it is the mean squared
        difference, and there is no agreement.

        Raises:
            ModelError: the model returns another shape than the teacher.
        """
        model.eval()
        device = device_of(model)
        outputs: Tensor = torch.cat([model(batch.to(device)).float().cpu() for batch in self._batches])
        check_same_shape(self._answers, outputs)
        if outputs.ndim != _CLASSIFIER_AXES:
            return float(terms.logit_difference(outputs, self._answers)), None
        same = (outputs.argmax(1) == self._answers.argmax(1)).float().mean()
        return float(terms.kl_divergence(outputs, self._answers)), float(same)
