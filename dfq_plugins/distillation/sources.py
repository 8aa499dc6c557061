"""Where the batches of a training run come from: a data set, or a generator that learns against the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dfq_plugins.distillation.batches import Examples, TrainingBatches, presented, rng_for
from dfq_plugins.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dfq_plugins.distillation.options import DistillationOptions
    from dfq_plugins.types import InputSpec, LearningGenerator


class Source(Protocol):
    """Makes the batch of each training step."""

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Return the batch of a step for the student as it is now.

        Args:
            step: counts from 0.
            student: the network in training.
            progress: share of the training that is done, 0 to 1.
        """
        ...

    def capture(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold for the source to go on exactly."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `capture` returned."""
        ...


class DatasetSource:
    """Batches of a data set, whose order depends on seed and step alone."""

    def __init__(
        self,
        examples: Examples,
        options: DistillationOptions,
        num_classes: int | None,
        fill: tuple[float, ...] | None = None,
    ) -> None:
        self._batches = TrainingBatches(examples, options, num_classes, fill)

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:  # noqa: ARG002  data sets look at none
        """Return the batch of a step."""
        return self._batches.batch(step)

    def capture(self) -> dict[str, Tensor]:
        """Return nothing: there is no state."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""


class GeneratorSource:
    """Batches of a generator that learns: before each step it sees the student, then it makes the inputs.

    Args:
        generator: what makes the inputs.
        teacher: a private frozen copy.
        spec: the input to make.
        options: size of a batch, mixup and augmentation, seed.
    """

    def __init__(
        self, generator: LearningGenerator, teacher: nn.Module, spec: InputSpec, options: DistillationOptions
    ) -> None:
        self._generator, self._spec, self._options = generator, spec, options
        self._rng = rng_for(options.seed, "generator")
        generator.begin(teacher, spec, self._rng)

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Let the generator learn from the student, and return its next batch, mixed and augmented.

        Raises:
            DataError: it makes another number of samples, or samples of another shape.
        """
        hear = getattr(self._generator, "progress", None)
        if hear is not None:
            hear(progress)
        self._generator.feedback(student)
        made = self._generator.batch(self._options.batch_size)
        wanted = (self._options.batch_size, *self._spec.shape)
        if tuple(made.inputs.shape) != wanted:
            raise DataError(
                f"A learning generator makes the batch that it is asked for, {wanted}, got {tuple(made.inputs.shape)}. "
                "Report it to its author."
            )
        labels = None if made.labels is None else made.labels.detach().cpu()
        examples = Examples(made.inputs.detach().float().cpu(), labels)
        fill = None if self._spec.bounds is None else self._spec.bounds[0]
        return presented(examples, self._options, step, self._spec.num_classes, fill)

    def capture(self) -> dict[str, Tensor]:
        """Return the generator's own state and that of its random numbers."""
        own = {f"own.{name}": tensor.detach().clone() for name, tensor in self._generator.state().items()}
        return {"rng": self._rng.get_state(), **own}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Bring both back."""
        self._rng.set_state(state["rng"])
        own = {name: tensor for name, tensor in state.items() if name != "rng"}
        self._generator.restore({name.removeprefix("own."): tensor for name, tensor in own.items()})
