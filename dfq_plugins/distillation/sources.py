"""Where the batches of a training run come from: a data set, a generator that learns beside the student, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from dfq_plugins.distillation.batches import Examples, TrainingBatches, presented, rng_for
from dfq_plugins.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.types import InputSpec, LearningGenerator, ProgressEvent


class BatchSource(Protocol):
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
        options: TrainingOptions,
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
        report: hears of what the generator does before its first batch.
    """

    def __init__(
        self,
        generator: LearningGenerator,
        teacher: nn.Module,
        spec: InputSpec,
        options: TrainingOptions,
        report: Callable[[ProgressEvent], None] = lambda _: None,
    ) -> None:
        self._generator, self._spec, self._options = generator, spec, options
        self._rng = rng_for(options.seed, "generator")
        generator.listen(report)
        generator.begin(teacher, spec, self._rng)

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Let the generator learn from the student, and return its next batch, mixed and augmented.

        Raises:
            DataError: it makes another number of samples, or samples of another shape.
        """
        self._generator.progress(progress)
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
        return presented(examples, self._options, step, self._spec.num_classes, self._spec.pad_value)

    def capture(self) -> dict[str, Tensor]:
        """Return the generator's own state and that of its random numbers."""
        own = {f"own.{name}": tensor.detach().clone() for name, tensor in self._generator.state().items()}
        return {"rng": self._rng.get_state(), **own}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Bring both back."""
        self._rng.set_state(state["rng"])
        own = {name: tensor for name, tensor in state.items() if name != "rng"}
        self._generator.restore({name.removeprefix("own."): tensor for name, tensor in own.items()})


class MixedSource:
    """Batches of which one source makes the first part and another one the rest."""

    def __init__(self, first: BatchSource, second: BatchSource) -> None:
        self._parts = (first, second)

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Return the batch of a step; it has labels where both parts have them."""
        return joined(*(part.batch(step, student, progress) for part in self._parts))

    def capture(self) -> dict[str, Tensor]:
        """Return what both parts need to go on."""
        states = [part.capture() for part in self._parts]
        return {f"{place}.{name}": kept for place, state in enumerate(states) for name, kept in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Bring both parts back."""
        for place, part in enumerate(self._parts):
            prefix = f"{place}."
            part.restore({name.removeprefix(prefix): kept for name, kept in state.items() if name.startswith(prefix)})


def joined(first: Examples, second: Examples) -> Examples:
    """Return the examples of both, with labels where both have them; answers are to be computed.

    >>> joined(Examples(torch.zeros(2, 3)), Examples(torch.ones(1, 3))).inputs.shape
    torch.Size([3, 3])
    """
    inputs = torch.cat([first.inputs, second.inputs])
    if first.labels is None or second.labels is None:
        return Examples(inputs)
    return Examples(inputs, torch.cat([first.labels, second.labels]))
