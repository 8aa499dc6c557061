"""The contract of a generator that learns against a student."""

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
"""The kit's student has weights rounded to this part of one."""


@dataclass(frozen=True)
class LearningCase:
    """What a learning generator is put to: a frozen teacher, its input, and a student in training."""

    teacher: nn.Module
    spec: InputSpec
    student: nn.Module


class LearningGeneratorContract:
    """Tests that every `LearningGenerator` passes. Subclass it, and give the fixture `generator`.

    The teacher is the trained digits classifier of `dfq demo`, the student a coarse copy of it. Override the fixtures
    `model` and `spec` for a generator that needs another kind of network, and the class attributes for one that
    learns more seldom.

    Attributes:
        batch_size: how many samples a batch is asked to hold.
        steps: how many steps of the training the longer tests take; the generator must have learned within them.
    """

    batch_size: ClassVar[int] = 8
    steps: ClassVar[int] = 12

    @pytest.fixture
    def generator(self) -> LearningGenerator:
        """Return the generator under test, a fresh object each time; every subclass gives its own."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'generator' that returns the generator.")

    @pytest.fixture
    def model(self) -> nn.Module:
        """Return a trained network with BatchNorm."""
        return digits_network()

    @pytest.fixture
    def spec(self) -> InputSpec:
        """Return what the network takes."""
        return DIGITS_SPEC

    @pytest.fixture
    def case(self, model: nn.Module, spec: InputSpec) -> LearningCase:
        """Return a teacher, its input, and a student that differs from it."""
        student = frozen_copy(model).requires_grad_(requires_grad=True)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.copy_((parameter * _ROUNDED).round() / _ROUNDED)
        return LearningCase(frozen_copy(model), spec, student.train())

    def batches(
        self, generator: LearningGenerator, case: LearningCase, steps: int, seed: int = 0, size: int | None = None
    ) -> list[Batch]:
        """Begin, and return the batches of the first steps, as the training asks for them."""
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
        """As many samples as the training's batch, in the shape of the specification, as a `Batch`."""
        for batch in self.batches(generator, case, 2, size=size):
            assert isinstance(batch, Batch), f"batch() returns a dfq_plugins.types.Batch, got {type(batch).__name__}."
            wanted = (size, *case.spec.shape)
            assert tuple(batch.inputs.shape) == wanted, (
                f"batch({size}) has the shape {wanted}, got {batch.inputs.shape}."
            )

    def test_inputs_are_plain_float32_tensors(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Detached, finite, and on the teacher's device."""
        for batch in self.batches(generator, case, 2):
            inputs = batch.inputs
            assert inputs.dtype is torch.float32, f"Inputs are float32, got {inputs.dtype}. Convert with .float()."
            assert not inputs.requires_grad, "Inputs are detached from the graph that made them. Call .detach()."
            assert bool(inputs.isfinite().all()), "Inputs are finite, got NaN or infinity."

    def test_inputs_stay_in_the_valid_range(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Each channel in its own bounds, in network units: `spec.bounds`."""
        if case.spec.bounds is None:
            pytest.skip("the specification knows no range")
        batches = self.batches(generator, case, self.steps)
        inputs = torch.cat([batch.inputs for batch in batches]).transpose(0, 1).flatten(1)
        for channel, (low, high) in enumerate(zip(*case.spec.bounds, strict=True)):
            lowest, highest = inputs[channel].min().item(), inputs[channel].max().item()
            assert low - TOLERANCE <= lowest <= highest <= high + TOLERANCE, (
                f"Channel {channel} lies in {low:.4g} to {high:.4g} (spec.bounds), got {lowest:.4g} to {highest:.4g}. "
                "Clamp to spec.bounds."
            )

    def test_an_input_of_unknown_range_is_made_or_refused(
        self, generator: LearningGenerator, case: LearningCase
    ) -> None:
        """Where mean, std and range are not known, samples are finite, or an error of `dfq_plugins.errors` says why."""
        unknown = replace(case, spec=replace(case.spec, mean=None, std=None, value_range=None))
        try:
            batches = self.batches(generator, unknown, 2)
        except DfqError:
            return
        assert all(bool(batch.inputs.isfinite().all()) for batch in batches), "Inputs of unknown range are finite, too."

    def test_labels_are_classes(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Where inputs were made for given classes: one whole number a sample, from 0 to num_classes - 1."""
        classes = case.spec.num_classes or 0
        for batch in self.batches(generator, case, 2):
            if batch.labels is not None:
                assert tuple(batch.labels.shape) == (self.batch_size,), f"One label a sample, got {batch.labels.shape}."
                assert not batch.labels.is_floating_point(), f"Labels are whole numbers, got {batch.labels.dtype}."
                assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < classes, (
                    f"Labels lie in 0 to {classes - 1}, got {int(batch.labels.min())} to {int(batch.labels.max())}."
                )

    def test_it_learns(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Batches change as the training goes on."""
        batches = self.batches(generator, case, self.steps)
        assert any(not torch.equal(batches[0].inputs, batch.inputs) for batch in batches), (
            f"All {self.steps} batches are the same. Learn in feedback() or batch(), or set `steps` of the contract to "
            "more than the steps between two lessons."
        )

    def test_the_student_stays_as_it_is(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Its values, BatchNorm statistics, mode and hooks; gradients left on it are the training's to clear."""
        before = model_state(case.student)
        self.batches(generator, case, self.steps)
        changed = differing(before, model_state(case.student))
        assert not changed, (
            f"feedback() and batch() leave the student as it is, but changed {', '.join(changed[:4])}. A forward pass "
            "in training mode moves BatchNorm: run it inside dfq_plugins.model_state.untouched(student)."
        )

    def test_same_seed_same_values(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Whatever the global random states are, also on a second run with one object."""
        made = []
        for seed in (1, 2):
            with other_randomness(seed):
                made.append(torch.cat([batch.inputs for batch in self.batches(generator, case, self.steps)]))
        assert torch.equal(*made), "The same rng gives the same values. Draw from rng alone, and begin anew in begin()."

    def test_another_seed_other_values(self, generator: LearningGenerator, case: LearningCase) -> None:
        """The training's seed decides."""
        first, second = (torch.cat([b.inputs for b in self.batches(generator, case, 2, seed)]) for seed in (0, 1))
        assert not torch.equal(first, second), "Another rng gives other values. Use the rng that begin() is given."

    def test_it_goes_on_exactly_where_it_stopped(self, generator: LearningGenerator, case: LearningCase) -> None:
        """`restore(state())` after `begin`, with the state of `rng` put back by the host."""
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
            "After restore(state()) the batches are those of a run that was not interrupted. Return everything that "
            "they depend on from state(): weights, the optimizer's moments, counters, inputs in use."
        )

    def test_the_process_stays_as_it_is(self, generator: LearningGenerator, case: LearningCase) -> None:
        """Random states, default dtype and grad mode, at every step."""
        with preserve_global_state():
            before = process_state()
            generator.begin(case.teacher, case.spec, torch.Generator().manual_seed(0))
            for _ in self.go_on(generator, case, range(self.steps)):
                changed = differing(before, process_state())
                assert not changed, (
                    f"A generator leaves the process as it is, but changed {', '.join(changed)}. Draw from rng; torch "
                    "initializes layers from its global state, so build them inside torch.random.fork_rng()."
                )
