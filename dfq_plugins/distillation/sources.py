"""Sources of training batches: a data set, a learning generator, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from dfq_plugins.distillation.batches import Examples, TrainingBatches, presented, rng_for
from dfq_plugins.errors import DataError
from dfq_plugins.host.accepted import accepted_spec
from dfq_plugins.inputs import joined as joined_inputs
from dfq_plugins.inputs import map_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.types import LearningGenerator, ProgressEvent, Specification


class BatchSource(Protocol):
    """Supplies the batch for each training step."""

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Return the batch for a step, given the current student.

        Args:
            step: counts from 0.
            student: the network in training.
            progress: completed share of the training, 0 to 1.
        """
        ...

    def capture(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint needs for the source to resume exactly."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Resume from the state that `capture` returned."""
        ...


class DatasetSource:
    """Batches of a data set, in an order that depends only on the seed and the step."""

    def __init__(
        self,
        examples: Examples,
        options: TrainingOptions,
        num_classes: int | None,
        fill: Any = None,
    ) -> None:
        self._batches = TrainingBatches(examples, options, num_classes, fill)

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:  # noqa: ARG002  not needed here
        """Return the batch for a step."""
        return self._batches.batch(step)

    def capture(self) -> dict[str, Tensor]:
        """Return an empty state; the source is stateless."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing; the source is stateless."""


class GeneratorSource:
    """Batches of a learning generator: in each step it first learns from the student, then makes the inputs.

    Args:
        generator: the learning generator.
        teacher: a private frozen copy.
        spec: specification of the inputs to make.
        options: batch size, mixup and augmentation, seed.
        report: called with the generator's progress before its first batch.
    """

    def __init__(
        self,
        generator: LearningGenerator,
        teacher: nn.Module,
        spec: Specification,
        options: TrainingOptions,
        report: Callable[[ProgressEvent], None] = lambda _: None,
    ) -> None:
        self._generator, self._spec, self._options = generator, spec, options
        self._rng = rng_for(options.seed, "generator")
        generator.listen(report)
        generator.begin(teacher, accepted_spec(generator, "learning generator", spec), self._rng)

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Let the generator learn from the student, and return its next batch with mixup and augmentation applied.

        Raises:
            DataError: the generator returned the wrong number of samples, or samples of the wrong shape.
        """
        self._generator.progress(progress)
        self._generator.feedback(student)
        made = self._generator.batch(self._options.batch_size)
        wanted = self._spec.map(lambda one: (self._options.batch_size, *one.shape))
        found = map_inputs(lambda tensor: tuple(tensor.shape), made.inputs)
        if found != wanted:
            raise DataError(
                f"A learning generator must return a batch of the requested shape, {wanted}, got {found}. Report this "
                "to the generator's author."
            )
        labels = None if made.labels is None else made.labels.detach().cpu()
        examples = Examples(map_inputs(lambda tensor: tensor.detach().float().cpu(), made.inputs), labels)
        fill = self._spec.map(lambda one: one.pad_value)
        return presented(examples, self._options, step, self._spec.num_classes, fill)

    def capture(self) -> dict[str, Tensor]:
        """Return the state of the generator and of its random number generator."""
        own = {f"own.{name}": tensor.detach().clone() for name, tensor in self._generator.state().items()}
        return {"rng": self._rng.get_state(), **own}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore both states."""
        self._rng.set_state(state["rng"])
        own = {name: tensor for name, tensor in state.items() if name != "rng"}
        self._generator.restore({name.removeprefix("own."): tensor for name, tensor in own.items()})


class MixedSource:
    """Batches that combine the batches of two sources."""

    def __init__(self, first: BatchSource, second: BatchSource) -> None:
        self._parts = (first, second)

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Return the batch for a step; it has labels only if both parts do."""
        return joined(*(part.batch(step, student, progress) for part in self._parts))

    def capture(self) -> dict[str, Tensor]:
        """Return the state of both parts."""
        states = [part.capture() for part in self._parts]
        return {f"{place}.{name}": kept for place, state in enumerate(states) for name, kept in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore both parts."""
        for place, part in enumerate(self._parts):
            prefix = f"{place}."
            part.restore({name.removeprefix(prefix): kept for name, kept in state.items() if name.startswith(prefix)})


def joined(first: Examples, second: Examples) -> Examples:
    """Return both sets of examples as one, with labels only if both have them, without teacher outputs and targets.

    >>> joined(Examples(torch.zeros(2, 3)), Examples(torch.ones(1, 3))).inputs.shape
    torch.Size([3, 3])
    """
    inputs = joined_inputs([first.inputs, second.inputs])
    if first.labels is None or second.labels is None:
        return Examples(inputs)
    return Examples(inputs, torch.cat([first.labels, second.labels]))
