"""Base class of generators that are networks: they learn every few steps of the student, and can be resumed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation.schedule import learning_rate_factor
from dfq_plugins.distillation.state import capture_optimizer, restore_optimizer
from dfq_plugins.errors import DivergedError
from dfq_plugins.generators.image_network import ImageNetwork, require_images
from dfq_plugins.generators.inversion import balanced_labels
from dfq_plugins.generators.teacher import ObservedTeacher
from dfq_plugins.network.precision import use_bfloat16
from dfq_plugins.network.specification import require_classes
from dfq_plugins.types import Batch, LearningGenerator, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from dfq_plugins.generators.options import NetworkOptions
    from dfq_plugins.types import InputSpec

_SEEDS = 2**62
_NETWORK, _OPTIMIZER = "network.", "optimizer."


class NetworkGenerator(LearningGenerator):
    """A `LearningGenerator` that generates images from random numbers and learns from a loss on these images.

    The student takes `student_steps` steps on the images of one generator step, as they were before that step.
    Subclasses define the loss.

    Args:
        options: options of the network, its optimizer, and the frequency of its steps.
    """

    conditional = False

    @property
    def learns_alone(self) -> bool:
        """Whether the network can learn without a student."""
        return True

    def __init__(self, options: NetworkOptions) -> None:
        self.options = options
        self._report: Callable[[ProgressEvent], None] = lambda _: None

    def listen(self, report: Callable[[ProgressEvent], None]) -> None:
        """Register a listener for the warm-up steps."""
        self._report = report

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Reject an unsupported model or specification, before anything is trained.

        Raises:
            UsageError: the inputs are not images, or classes are needed but the network is not a classifier.
            ModelError: statistics are to be matched, but the network has none.
        """
        require_images(spec)
        if self.conditional:
            need = (
                "This generator makes images of given classes, so it needs a classifier; the generator 'bns' does not."
            )
            require_classes(model, spec, need)
        ObservedTeacher(model, spec, self.options)

    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        """Build a new network with weights drawn from `rng`."""
        self.check_supported(teacher, spec)
        self.spec, self.rng = spec, rng
        self.teacher = ObservedTeacher(teacher, spec, self.options)
        with torch.random.fork_rng(devices=[]):  # torch initializes layers only from the global state
            torch.manual_seed(int(torch.randint(_SEEDS, (), generator=rng)))
            classes = spec.num_classes if self.conditional else None
            bounded = self.options.output == "bounded"
            network = ImageNetwork(spec, self.options.latent, self.options.width, bounded=bounded, num_classes=classes)
        self.network = network.to(self.teacher.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.options.learning_rate, betas=(self.options.beta1, 0.999)
        )
        self._share, self._used, self._learned = 0.0, 0, 0
        self._student: nn.Module | None = None
        self._images = torch.empty(0, *spec.shape, device=self.teacher.device)
        self._labels = torch.empty(0, dtype=torch.long)

    def progress(self, share: float) -> None:
        """Set the fraction of the training that is done, 0 to 1, which determines the learning rate."""
        self._share = share

    def feedback(self, student: nn.Module) -> None:
        """Set the student that the next generator step learns from."""
        self._student = student

    def batch(self, size: int) -> Batch:
        """Return the images of the student's next step `(size, *shape)`, with their classes if they have any."""
        if self._used % self.options.student_steps == 0 or len(self._images) != size:
            self._used = 0
            self.renew(size)
        self._used += 1
        self._student = None
        return Batch(self._images.clone(), self._labels.clone() if self.conditional else None)

    def renew(self, size: int) -> None:
        """Take one step and keep its images; the first step follows the warm-up."""
        if self._learned == 0 and self.learns_alone:
            for done in range(self.options.warm_up):
                self.step(size, None)
                self._report(ProgressEvent("warm up", done + 1, self.options.warm_up))
        self._images, self._labels = self.step(size, self._student)

    def step(self, size: int, student: nn.Module | None) -> tuple[Tensor, Tensor]:
        """Take one step of the network; return its images and their target classes.

        Raises:
            DivergedError: the loss is not finite.
        """
        labels = balanced_labels(size, self.spec.num_classes if self.conditional else None, self.rng)
        with torch.enable_grad():
            images = self.draw(labels)
            loss = self.loss(images, labels.to(images.device), student)
            gradients = torch.autograd.grad(loss, list(self.network.parameters()))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"The generator diverged: its loss was {value} at generator step {self._learned + 1} (learning rate "
                f"{self.options.learning_rate}). Lower its learning_rate, or set its gradient_clip."
            )
        self._descend(gradients)
        self._learned += 1
        return images.detach(), labels

    def draw(self, labels: Tensor) -> Tensor:
        """Return images `(batch, *shape)` from new random numbers, for the classes `(batch,)` if conditional."""
        latent = torch.randn(len(labels), self.options.latent, generator=self.rng).to(self.teacher.device)
        half = use_bfloat16(self.options.precision, self.teacher.device)
        with torch.autocast(self.teacher.device.type, dtype=torch.bfloat16, enabled=half):
            images: Tensor = self.network(latent, labels.to(latent.device))
        return images

    def loss(self, images: Tensor, labels: Tensor, student: nn.Module | None) -> Tensor:
        """Return the loss that the network minimizes, a scalar.

        Args:
            images: `(batch, *shape)`, with gradients.
            labels: target classes `(batch,)`; 0 if there are no classes.
            student: the current student; None if there is none yet.
        """
        raise NotImplementedError

    def _descend(self, gradients: tuple[Tensor, ...]) -> None:
        parameters = list(self.network.parameters())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.options.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.options.gradient_clip)
        factor = learning_rate_factor(self._share, 0.0) if self.options.schedule == "cosine" else 1.0
        self.optimizer.param_groups[0]["lr"] = self.options.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> Mapping[str, Tensor]:
        """Return the network, its optimizer, and the current images with their number of uses."""
        network = {f"{_NETWORK}{name}": value for name, value in self.network.state_dict().items()}
        moments = {f"{_OPTIMIZER}{name}": value for name, value in capture_optimizer(self.optimizer).items()}
        counts = torch.tensor([self._used, self._learned])
        return {**network, **moments, "images": self._images, "labels": self._labels, "counts": counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Resume from the result of `state`."""
        parts = {
            prefix: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            for prefix in (_NETWORK, _OPTIMIZER)
        }
        self.network.load_state_dict(parts[_NETWORK])
        restore_optimizer(self.optimizer, parts[_OPTIMIZER])
        self._images, self._labels = state["images"].to(self.teacher.device), state["labels"].clone()
        self._used, self._learned = map(int, state["counts"])
