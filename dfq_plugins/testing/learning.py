"""The contract of a learning generator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import nn

from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import DfqError
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.testing.generator import TOLERANCE
from dfq_plugins.testing.snapshots import differing, model_state, other_randomness, process_state
from dfq_plugins.types import Batch, InputSpec, LearningGenerator

if TYPE_CHECKING:
    from collections.abc import Iterator


_ROUNDED = 16.0
"""The test student's weights are rounded to multiples of 1 / this value."""


@dataclass(frozen=True)
class LearningCase:
    """The setup for a learning generator: a frozen teacher, its input specification, and a student in training."""

    teacher: nn.Module
    spec: InputSpec
    student: nn.Module


class LearningGeneratorContract:
    """Tests that every `LearningGenerator` must pass. Subclass it, and define the fixture `generator`.

    The teacher is the trained digits classifier of `dfq demo`, the student a coarse copy of it. Override the fixtures
    `model` and `spec` if a generator needs another kind of network, and the class attributes if it learns less often.

    Attributes:
        batch_size: number of samples requested per batch.
        steps: number of training steps in the longer tests; the generator must learn within them.
    """

    batch_size: ClassVar[int] = 8
    steps: ClassVar[int] = 12

    @pytest.fixture
    def generator(self) -> LearningGenerator:
        """Return the generator under test, a new object each time; every subclass defines this."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'generator' that returns the generator.")

    @pytest.fixture
    def model(self) -> nn.Module:
        """Return a trained network with BatchNorm."""
        return digits_network()

    @pytest.fixture
    def spec(self) -> InputSpec:
        """Return the network's input specification."""
        return DIGITS_SPEC

    @pytest.fixture
    def case(self, model: nn.Module, spec: InputSpec) -> LearningCase:
        """Return a teacher, its input specification, and a student that differs from it."""
        student = frozen_copy(model).requires_grad_(requires_grad=True)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.copy_((parameter * _ROUNDED).round() / _ROUNDED)
        return LearningCase(frozen_copy(model), spec, student.train())

    def batches(
        self, generator: LearningGenerator, case: LearningCase, steps: int, seed: int = 0, size: int | None = None
    ) -> list[Batch]:
        """Begin, and return the batches of the first steps, as requested by the training."""
        rng = torch.Generator().manual_seed(seed)
        generator.begin(case.teacher, case.spec, rng)
        return list(self.go_on(generator, case, range(steps), size))

    def go_on(
        self, generator: LearningGenerator, case: LearningCase, steps: range, size: int | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of the next steps."""
        for step in steps:
            generator.progress(step / self.steps)
            generator.feedback(case.student)
            yield generator.batch(size or self.batch_size)

    @pytest.mark.parametrize("size", [2, 8])
    def test_makes_the_batch_that_it_is_asked_for(
        self, generator: LearningGenerator, case: LearningCase, size: int
    ) -> None:
        """A `Batch` of the requested size, with samples of the specification's shape."""
        for batch in self.batches(generator, case, 2, size=size):
            assert isinstance(batch, Batch), (
                f"batch() must return a dfq_plugins.types.Batch, got {type(batch).__name__}."
            )
            wanted = (size, *case.spec.shape)
            assert tuple(batch.inputs.shape) == wanted, (
                f"batch({size}) must return inputs of shape {wanted}, got {tuple(batch.inputs.shape)}."
            )

    def test_inputs_are_plain_float32_tensors(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Detached, finite, and on the teacher's device."""
        for batch in self.batches(generator, case, 2):
            inputs = batch.inputs
            assert inputs.dtype is torch.float32, f"Inputs must be float32, got {inputs.dtype}. Convert with .float()."
            assert not inputs.requires_grad, "Inputs must be detached from their autograd graph. Call .detach()."
            assert bool(inputs.isfinite().all()), "Inputs must be finite, got NaN or infinity."

    def test_inputs_stay_in_the_valid_range(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Each channel within its bounds, in network units: `spec.bounds`."""
        if case.spec.bounds is None:
            pytest.skip("the specification has no valid range")
        batches = self.batches(generator, case, self.steps)
        inputs = torch.cat([batch.inputs for batch in batches]).transpose(0, 1).flatten(1)
        for channel, (low, high) in enumerate(zip(*case.spec.bounds, strict=True)):
            lowest, highest = inputs[channel].min().item(), inputs[channel].max().item()
            assert low - TOLERANCE <= lowest <= highest <= high + TOLERANCE, (
                f"Channel {channel} must stay within {low:.4g} to {high:.4g} (spec.bounds), got {lowest:.4g} to "
                f"{highest:.4g}. Clamp to spec.bounds."
            )

    def test_an_input_of_unknown_range_is_made_or_refused(
        self, generator: LearningGenerator, case: LearningCase
    ) -> None:
        """If mean, std and range are unknown, samples are finite, or an error from `dfq_plugins.errors` is raised."""
        unknown = replace(case, spec=replace(case.spec, mean=None, std=None, value_range=None))
        try:
            batches = self.batches(generator, unknown, 2)
        except DfqError:
            return
        assert all(bool(batch.inputs.isfinite().all()) for batch in batches), (
            "Inputs of unknown range must be finite too, or raise an error from dfq_plugins.errors."
        )

    def test_labels_are_classes(self, generator: LearningGenerator, case: LearningCase) -> None:
        """If inputs were made for given classes: one integer per sample, from 0 to num_classes - 1."""
        classes = case.spec.num_classes or 0
        for batch in self.batches(generator, case, 2):
            if batch.labels is not None:
                assert tuple(batch.labels.shape) == (self.batch_size,), (
                    f"Each sample needs one label: {self.batch_size} samples, got labels of shape "
                    f"{tuple(batch.labels.shape)}."
                )
                assert not batch.labels.is_floating_point(), (
                    f"Labels must be integers, got {batch.labels.dtype}. Use .long()."
                )
                assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < classes, (
                    f"Labels must be from 0 to {classes - 1}, got {int(batch.labels.min())} to "
                    f"{int(batch.labels.max())}."
                )

    def test_it_learns(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Batches change during training."""
        batches = self.batches(generator, case, self.steps)
        assert any(not torch.equal(batches[0].inputs, batch.inputs) for batch in batches), (
            f"Batches must change during training, but all {self.steps} are the same. Learn in feedback() or batch(), "
            "or set the contract's `steps` to more than the generator's learning interval."
        )

    def test_the_student_stays_as_it_is(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Its values, BatchNorm statistics, mode and hooks; the training clears gradients left on it."""
        before = model_state(case.student)
        self.batches(generator, case, self.steps)
        changed = differing(before, model_state(case.student))
        assert not changed, (
            f"feedback() and batch() must leave the student unchanged, but changed {', '.join(changed[:4])}. A forward "
            "pass in training mode updates BatchNorm: run it inside dfq_plugins.model_state.untouched(student)."
        )

    def test_same_seed_same_values(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Regardless of the global random states, and on a second run of the same object."""
        made = []
        for seed in (1, 2):
            with other_randomness(seed):
                made.append(torch.cat([batch.inputs for batch in self.batches(generator, case, self.steps)]))
        assert torch.equal(*made), (
            "The same rng must give the same values. Draw only from rng, and reset all state in begin()."
        )

    def test_another_seed_other_values(self, generator: LearningGenerator, case: LearningCase) -> None:
        """The training's seed determines the values."""
        first, second = (torch.cat([b.inputs for b in self.batches(generator, case, 2, seed)]) for seed in (0, 1))
        assert not torch.equal(first, second), (
            "A different rng must give different values. Draw from the rng passed to begin()."
        )

    def test_it_goes_on_exactly_where_it_stopped(self, generator: LearningGenerator, case: LearningCase) -> None:
        """`restore(state())` after `begin`, with the state of `rng` restored by the host."""
        half = self.steps // 2
        rng = torch.Generator().manual_seed(0)
        generator.begin(case.teacher, case.spec, rng)
        list(self.go_on(generator, case, range(half)))
        kept = {name: value.detach().clone() for name, value in generator.state().items()}
        state = rng.get_state()
        expected = [batch.inputs.clone() for batch in self.go_on(generator, case, range(half, self.steps))]
        again = torch.Generator().manual_seed(1)
        generator.begin(case.teacher, case.spec, again)
        again.set_state(state)
        generator.restore(kept)
        found = [batch.inputs for batch in self.go_on(generator, case, range(half, self.steps))]
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True)), (
            "After restore(state()), the batches must be the same as in an uninterrupted run. Return everything that "
            "they depend on from state(): weights, optimizer moments, counters, inputs in use."
        )

    def test_the_process_stays_as_it_is(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Random states, default dtype and grad mode, at every step."""
        with preserve_global_state():
            before = process_state()
            generator.begin(case.teacher, case.spec, torch.Generator().manual_seed(0))
            for _ in self.go_on(generator, case, range(self.steps)):
                changed = differing(before, process_state())
                assert not changed, (
                    f"A generator must leave the process unchanged, but changed {', '.join(changed)}. Draw from rng; "
                    "torch initializes layers from its global state, so build them inside torch.random.fork_rng()."
                )
