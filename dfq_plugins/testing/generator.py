"""The contract of a data generator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import DfqError
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.testing.snapshots import differing, other_randomness, process_state
from dfq_plugins.types import Batch, DataGenerator, InputSpec, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

TOLERANCE = 1e-4
"""How far a value may exceed the valid range; allows for rounding only."""


@dataclass(frozen=True)
class Made:
    """The result of one run of a generator: its batches and the progress that it reported."""

    batches: list[Batch]
    events: list[ProgressEvent]


_RUNS = pytest.StashKey[dict[tuple[type, str], Made]]()


class GeneratorContract:
    """Tests that every `DataGenerator` must pass. Subclass it, and define the fixture `generator`.

    The network is the trained digits classifier of `dfq demo`. Override the fixtures `model` and `spec` if a generator
    needs another kind of network, and the class attributes if it needs other sizes.

    Attributes:
        num_samples: number of samples that most tests request; not a multiple of `batch_size`.
        batch_size: maximum batch size that the tests allow.
    """

    num_samples: ClassVar[int] = 10
    batch_size: ClassVar[int] = 4

    @pytest.fixture
    def generator(self) -> DataGenerator:
        """Return the generator under test; every subclass defines this."""
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
    def made(self, request: pytest.FixtureRequest, generator: DataGenerator, model: nn.Module, spec: InputSpec) -> Made:
        """Return the batches and events of one run, shared by tests that only read them."""
        case = (type(self), request.node.callspec.id if hasattr(request.node, "callspec") else "")
        runs = request.config.stash.setdefault(_RUNS, {})
        if case not in runs:
            events: list[ProgressEvent] = []
            runs[case] = Made(self.make(generator, model, spec, report=events.append), events)
        return runs[case]

    def make(
        self,
        generator: DataGenerator,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        report: Callable[[ProgressEvent], None] = lambda _: None,
    ) -> list[Batch]:
        """Run the generator as the host does; a generator that yields too many samples is cut off."""
        return list(self._batches(generator, frozen_copy(model), spec, num_samples or self.num_samples, seed, report))

    def _batches(
        self,
        generator: DataGenerator,
        model: nn.Module,
        spec: InputSpec,
        count: int,
        seed: int,
        report: Callable[[ProgressEvent], None],
    ) -> Iterator[Batch]:
        generator.check_supported(model, spec)
        rng = torch.Generator().manual_seed(seed)
        made = 0
        for batch in generator.generate(
            model, spec, num_samples=count, batch_size=self.batch_size, rng=rng, report=report
        ):
            yield batch
            made += len(batch[0])
            if made > count:
                return

    @pytest.mark.parametrize("num_samples", [1, 4, 10])
    def test_makes_exactly_as_many_samples_as_asked_for(
        self, generator: DataGenerator, model: nn.Module, spec: InputSpec, num_samples: int
    ) -> None:
        """One sample, a full batch, and a number that is not a multiple of the batch size."""
        made = sum(len(batch[0]) for batch in self.make(generator, model, spec, num_samples=num_samples))
        assert made == num_samples, (
            f"generate() must yield num_samples={num_samples} samples, got {made}. Yield a smaller last batch for the "
            "rest."
        )

    def test_no_batch_is_larger_than_asked_for(self, made: Made) -> None:
        """`batch_size` is the number of samples that fits into memory."""
        sizes = [len(batch[0]) for batch in made.batches]
        assert max(sizes) <= self.batch_size, (
            f"Batches must have at most batch_size={self.batch_size} samples, got {sizes}. Split larger batches."
        )

    def test_yields_batch_records(self, made: Made) -> None:
        """The host reads `.inputs` and `.labels`."""
        kinds = {type(batch).__name__ for batch in made.batches}
        assert kinds == {"Batch"}, f"generate() must yield dfq_plugins.types.Batch records, got {kinds}."

    def test_inputs_have_the_shape_of_the_specification(self, made: Made, spec: InputSpec) -> None:
        """Channels first, with a batch axis."""
        shapes = {tuple(batch[0].shape[1:]) for batch in made.batches}
        assert shapes == {spec.shape}, f"Samples must have the specification's shape, {spec.shape}, got {shapes}."

    def test_inputs_are_plain_float32_tensors(self, made: Made) -> None:
        """Detached, and on the device of the given model, here the CPU."""
        for inputs, *_ in made.batches:
            assert inputs.dtype is torch.float32, f"Inputs must be float32, got {inputs.dtype}. Convert with .float()."
            assert not inputs.requires_grad, "Inputs must be detached from their autograd graph. Call .detach()."
            assert inputs.device.type == "cpu", f"Inputs must be on the model's device, cpu, got {inputs.device}."

    def test_inputs_are_finite(self, made: Made) -> None:
        """No NaN, no infinity."""
        broken = sum(int((~batch[0].isfinite()).sum()) for batch in made.batches)
        assert broken == 0, f"Inputs must be finite, got {broken} values that are NaN or infinite."

    def test_inputs_stay_in_the_valid_range(self, made: Made, spec: InputSpec) -> None:
        """Each channel within its bounds, in network units: `spec.bounds`."""
        if spec.bounds is None:
            pytest.skip("the specification has no valid range")
        inputs = torch.cat([batch[0] for batch in made.batches]).transpose(0, 1).flatten(1)
        for channel, (low, high) in enumerate(zip(*spec.bounds, strict=True)):
            lowest, highest = inputs[channel].min().item(), inputs[channel].max().item()
            assert low - TOLERANCE <= lowest <= highest <= high + TOLERANCE, (
                f"Channel {channel} must stay within {low:.4g} to {high:.4g} (spec.bounds), got {lowest:.4g} to "
                f"{highest:.4g}. Clamp to spec.bounds."
            )

    def test_an_input_of_unknown_range_is_made_or_refused(
        self, generator: DataGenerator, model: nn.Module, spec: InputSpec
    ) -> None:
        """If mean, std and range are unknown, samples are finite, or an error from `dfq_plugins.errors` is raised."""
        unknown = replace(spec, mean=None, std=None, value_range=None)
        try:
            batches = self.make(generator, model, unknown)
        except DfqError:
            return
        assert all(bool(batch[0].isfinite().all()) for batch in batches), (
            "Inputs of unknown range must be finite too, or raise an error from dfq_plugins.errors."
        )

    def test_labels_are_classes(self, generator: DataGenerator, made: Made, spec: InputSpec) -> None:
        """One integer per sample, from 0 to num_classes - 1; a conditional generator always yields them."""
        conditional = generator.conditional
        for inputs, labels, *_ in made.batches:
            assert labels is not None or not conditional, (
                "A generator with conditional = True must yield labels, got None."
            )
            if labels is not None:
                assert tuple(labels.shape) == (len(inputs),), (
                    f"Each sample needs one label: {len(inputs)} samples, got labels of shape {tuple(labels.shape)}."
                )
                assert not labels.is_floating_point(), f"Labels must be integers, got {labels.dtype}. Use .long()."
                assert int(labels.min()) >= 0, f"Labels must be at least 0, got {int(labels.min())}."
                assert int(labels.max()) < (spec.num_classes or 0), (
                    f"Labels must be below num_classes={spec.num_classes}, got {int(labels.max())}."
                )

    def test_same_seed_same_values(self, generator: DataGenerator, model: nn.Module, spec: InputSpec) -> None:
        """Regardless of the global random states: `rng` is the only source of randomness."""
        made = []
        for seed in (1, 2):
            with other_randomness(seed):
                made.append(torch.cat([batch[0] for batch in self.make(generator, model, spec)]))
        assert torch.equal(*made), (
            "The same rng must give the same values. Draw only from rng: torch.rand(..., generator=rng)."
        )

    def test_another_seed_other_values(self, generator: DataGenerator, model: nn.Module, spec: InputSpec) -> None:
        """Shards of one set differ only in their seeds."""
        first, second = (torch.cat([b[0] for b in self.make(generator, model, spec, seed=seed)]) for seed in (0, 1))
        assert not torch.equal(first, second), (
            "A different rng must give different values, or all shards would be identical. Draw from rng."
        )

    def test_earlier_shards_leave_no_trace(self, generator: DataGenerator, model: nn.Module, spec: InputSpec) -> None:
        """One object and one private model make all shards; resuming and several machines need them independent."""
        private = frozen_copy(model)

        def shard(seed: int, count: int) -> torch.Tensor:
            parts = self._batches(generator, private, spec, count, seed, lambda _: None)
            return torch.cat([batch[0] for batch in parts])

        alone = shard(0, self.num_samples)
        shard(1, self.num_samples - 1)
        assert torch.equal(alone, shard(0, self.num_samples)), (
            "A shard's values must not depend on earlier shards. Keep no state between calls of generate(), and "
            "restore the model if you change it."
        )

    def test_the_process_stays_as_it_is(self, generator: DataGenerator, model: nn.Module, spec: InputSpec) -> None:
        """Random states, default dtype and grad mode, at every batch: the caller's code runs in between."""
        private = frozen_copy(model)
        with preserve_global_state():
            before = process_state()
            for _ in self._batches(generator, private, spec, self.num_samples, 0, lambda _: None):
                changed = differing(before, process_state())
                assert not changed, (
                    f"generate() must leave the process unchanged at every batch, but changed {', '.join(changed)}. "
                    "Draw from rng; close `with torch.no_grad():` before `yield`."
                )
            changed = differing(before, process_state())
            assert not changed, f"generate() must leave the process unchanged, but changed {', '.join(changed)}."

    def test_reports_progress(self, made: Made) -> None:
        """Never decreasing, and complete at the end."""
        events = made.events
        assert events, "generate() must call report(ProgressEvent(...)) after each step, but never did."
        assert all(isinstance(event, ProgressEvent) for event in events), "report() takes a ProgressEvent."
        done = [event.completed / event.total for event in events]
        assert done == sorted(done), f"Progress must never decrease, got {done}."
        assert done[-1] == 1, f"The last report must have completed == total, got {events[-1]}."
