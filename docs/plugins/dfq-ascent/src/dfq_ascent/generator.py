"""Noise that climbs the disagreement of student and teacher, in small steps of equal size."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dfq_ascent.plugin import AscentOptions
from dfq_plugins.model_state import untouched
from dfq_plugins.types import Batch, InputSpec, LearningGenerator


class Ascent(LearningGenerator):
    def __init__(self, options: AscentOptions) -> None:
        self.options = options

    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        self.teacher, self.spec, self.rng = teacher, spec, rng
        self.images = torch.empty(0, *spec.shape)
        self.feedbacks = 0

    def feedback(self, student: nn.Module) -> None:
        self.feedbacks += 1
        if self.feedbacks % self.options.student_steps or not len(self.images):
            return
        images = self.images.clone().requires_grad_()
        with untouched(student):
            disagreement = (student(images) - self.teacher(images)).square().sum()
            (gradient,) = torch.autograd.grad(disagreement, images)
        self.images = self.clamp(self.images + self.options.step_size * gradient.sign())

    def batch(self, size: int) -> Batch:
        if len(self.images) != size:
            self.images = self.clamp(torch.randn(size, *self.spec.shape, generator=self.rng))
        return Batch(self.images.clone())

    def state(self) -> Mapping[str, Tensor]:
        return {"images": self.images, "feedbacks": torch.tensor(self.feedbacks)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.images, self.feedbacks = state["images"].clone(), int(state["feedbacks"])

    def clamp(self, images: Tensor) -> Tensor:
        if self.spec.bounds is None:
            return images
        low, high = (torch.tensor(edge).view(-1, *[1] * (images.ndim - 2)) for edge in self.spec.bounds)
        return images.clamp(low, high)
