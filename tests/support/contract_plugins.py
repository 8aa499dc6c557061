"""A generator and a calibrator that keep their contracts, and one that breaks each of its tests."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.model_state import untouched
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape, state_of
from dfq_plugins.types import (
    Artifact,
    Batch,
    Calibrator,
    Check,
    Coverage,
    DataGenerator,
    InputSpec,
    LearningGenerator,
    NumberFormat,
    ProgressEvent,
    QuantizedTensor,
    Recipe,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


class Uniform(DataGenerator):
    """Uniform noise in the valid range."""

    def generate(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
    ) -> Iterator[Batch]:
        done = 0
        while done < num_samples:
            batch = self.batch(model, spec, min(batch_size, num_samples - done), rng)
            done += len(batch[0])
            report(ProgressEvent("synthesize", done, num_samples))
            yield batch

    def batch(self, _model: nn.Module, spec: InputSpec, size: int, rng: torch.Generator) -> Batch:
        low, high = spec.input_range or (-1.0, 1.0)
        return Batch(low + (high - low) * torch.rand(size, *spec.shape, generator=rng))


class Remainderless(Uniform):
    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        for batch in super().generate(*arguments, **settings):
            if len(batch.inputs) == settings["batch_size"]:
                yield batch


class Greedy(Uniform):
    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        yield from super().generate(*arguments, **settings | {"batch_size": settings["num_samples"]})


class Pairs(Uniform):
    def batch(self, *arguments: Any) -> Any:
        return (super().batch(*arguments).inputs, None)


class ChannelsLast(Uniform):
    def batch(self, *arguments: Any) -> Batch:
        return Batch(super().batch(*arguments).inputs.movedim(1, -1))


class Attached(Uniform):
    def batch(self, *arguments: Any) -> Batch:
        return Batch(super().batch(*arguments).inputs.requires_grad_())


class Double(Uniform):
    def batch(self, *arguments: Any) -> Batch:
        return Batch(super().batch(*arguments).inputs.double())


class Undefined(Uniform):
    def batch(self, *arguments: Any) -> Batch:
        inputs = super().batch(*arguments).inputs
        inputs[0] = float("nan")
        return Batch(inputs)


class Unclamped(Uniform):
    def batch(self, *arguments: Any) -> Batch:
        return Batch(super().batch(*arguments).inputs * 2)


class Bounded(Uniform):
    def batch(self, model: nn.Module, spec: InputSpec, size: int, rng: torch.Generator) -> Batch:
        _low, _high = spec.bounds  # type: ignore[misc]  # None where the range is not known: the mistake
        return super().batch(model, spec, size, rng)


class Unlabeled(Uniform):
    conditional = True


class OneBasedLabels(Uniform):
    def batch(self, model: nn.Module, spec: InputSpec, size: int, rng: torch.Generator) -> Batch:
        return Batch(super().batch(model, spec, size, rng).inputs, torch.full((size,), spec.num_classes))


class GloballyRandom(Uniform):
    def batch(self, model: nn.Module, spec: InputSpec, size: int, rng: torch.Generator) -> Batch:
        return super().batch(model, spec, size, rng.manual_seed(random.getrandbits(31)))


class Seedless(Uniform):
    def batch(self, model: nn.Module, spec: InputSpec, size: int, rng: torch.Generator) -> Batch:
        return super().batch(model, spec, size, rng.manual_seed(0))


class Ageing(Uniform):
    """Spoils the model that it is given, and makes samples by it."""

    def batch(self, model: nn.Module, *arguments: Any) -> Batch:
        with torch.no_grad():
            weight = next(model.parameters()).mul_(0.9)
        return Batch(super().batch(model, *arguments).inputs * min(1.0, float(weight.abs().mean())))


class LeakingNoGrad(Uniform):
    """Yields inside `with torch.no_grad()`, which then holds in the caller's code."""

    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        with torch.no_grad():
            yield from super().generate(*arguments, **settings)


class Silent(Uniform):
    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        yield from super().generate(*arguments, **settings | {"report": lambda _: None})


class NeverDone(Uniform):
    def generate(self, *arguments: Any, report: Callable[[ProgressEvent], None], **settings: Any) -> Iterator[Batch]:
        def late(event: ProgressEvent) -> None:
            report(ProgressEvent(event.stage, event.completed, event.total + 1))

        yield from super().generate(*arguments, report=late, **settings)


BROKEN_GENERATORS: list[tuple[type[Uniform], str]] = [
    (Remainderless, "test_makes_exactly_as_many_samples_as_asked_for"),
    (Greedy, "test_no_batch_is_larger_than_asked_for"),
    (Pairs, "test_yields_batch_records"),
    (ChannelsLast, "test_inputs_have_the_shape_of_the_specification"),
    (Attached, "test_inputs_are_plain_float32_tensors"),
    (Double, "test_inputs_are_plain_float32_tensors"),
    (Undefined, "test_inputs_are_finite"),
    (Unclamped, "test_inputs_stay_in_the_valid_range"),
    (Bounded, "test_an_input_of_unknown_range_is_made_or_refused"),
    (Unlabeled, "test_labels_are_classes"),
    (OneBasedLabels, "test_labels_are_classes"),
    (GloballyRandom, "test_same_seed_same_values"),
    (Seedless, "test_another_seed_other_values"),
    (Ageing, "test_earlier_shards_leave_no_trace"),
    (LeakingNoGrad, "test_the_process_stays_as_it_is"),
    (Silent, "test_reports_progress"),
    (NeverDone, "test_reports_progress"),
]
"""Each broken generator, and the test that catches it."""


class RoundedLinear(nn.Module):
    """A linear layer whose input is rounded to 255 levels of a range that calibration finds."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.range: float | None = None
        self.observing = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.observing:
            self.range = max(self.range or 0.0, float(inputs.abs().max()))
        elif self.range is not None:
            step = self.range / 127
            inputs = (inputs / step).round().clamp(-127, 127) * step
        result: torch.Tensor = self.layer(inputs)
        return result


class Rounding(Calibrator):
    """Rounds the input of the classifier of the digits network: small, and honest in every step."""

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        if recipe != Recipe(8, 8) or training:
            raise UsageError(f"Only w8a8 without training is there, got {recipe}. Choose w8a8.")
        prepared: Any = copy.deepcopy(model)
        prepared.classifier = RoundedLinear(prepared.classifier)
        attach_state(prepared, spec)
        return prepared  # type: ignore[no-any-return]

    def calibrate(self, prepared: Any, batches: Iterable[torch.Tensor]) -> None:
        spec = state_of(prepared, InputSpec, calibrator="rounding")
        prepared.classifier.observing = True
        for batch in checked_batches(batches, spec):
            prepared(batch)
        prepared.classifier.observing = False

    def convert(self, prepared: Any) -> nn.Module:
        state_of(prepared, InputSpec, calibrator="rounding")
        if prepared.classifier.range is None:
            raise UsageError("No data was seen. Calibrate first.")
        return prepared  # type: ignore[no-any-return]

    def describe(self, _converted: nn.Module) -> Coverage:
        int8 = NumberFormat(8, signed=True, symmetric=True, per_channel=False, stored_bits=8)
        return Coverage((QuantizedTensor("classifier", "Linear", "weight", int8),))

    def export(self, converted: Any, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        require_prepared_shape(spec, state_of(converted, InputSpec, calibrator="rounding"))
        target, temporary = path / "range.txt", path / "range.tmp"
        text = str(converted.classifier.range)
        try:
            path.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text)
            temporary.replace(target)
        except OSError as error:
            raise DataError(f"Cannot write {target}: {error}. Choose another folder.") from error
        finally:
            temporary.unlink(missing_ok=True)
        return (Artifact(target, "text", len(text), (Check("read", "it is there"),)),)

    def load(self, path: Path) -> nn.Module:
        loaded: Any = digits_network()
        loaded.classifier = RoundedLinear(loaded.classifier)
        loaded.classifier.range = float(path.read_text())
        return loaded  # type: ignore[no-any-return]


class Anything(Rounding):
    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        del recipe
        return super().prepare(model, spec, Recipe(8, 8), training=training)


class ListOfArtifacts(Rounding):
    def export(self, *arguments: Any) -> Any:
        return list(super().export(*arguments))


class InPlace(Rounding):
    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        model.train()
        return super().prepare(model, spec, recipe, training=training)


class Patching(Rounding):
    def convert(self, prepared: nn.Module) -> nn.Module:
        nn.Linear = RoundedLinear  # type: ignore[assignment, misc]
        return super().convert(prepared)


class FixedBatch(Rounding):
    def convert(self, prepared: nn.Module) -> nn.Module:
        converted: Any = super().convert(prepared)
        converted.pool = nn.Sequential(converted.pool, nn.Unflatten(0, (-1, 64)), nn.Flatten(0, 1))
        return converted  # type: ignore[no-any-return]


class Shuffled(Rounding):
    def convert(self, prepared: nn.Module) -> nn.Module:
        converted: Any = super().convert(prepared)
        layer = converted.classifier.layer
        layer.weight.data, layer.bias.data = -layer.weight.data, -layer.bias.data
        return converted  # type: ignore[no-any-return]


class StillFloat(Rounding):
    def convert(self, prepared: nn.Module) -> nn.Module:
        converted: Any = copy.deepcopy(super().convert(prepared))
        converted.classifier.range = None
        return converted  # type: ignore[no-any-return]


class Dataless(Rounding):
    def calibrate(self, prepared: Any, batches: Iterable[torch.Tensor]) -> None:
        super().calibrate(prepared, batches)
        prepared.classifier.range = 8.0


class Remembering(Rounding):
    highest = 0.0

    def calibrate(self, prepared: Any, batches: Iterable[torch.Tensor]) -> None:
        super().calibrate(prepared, batches)
        prepared.classifier.range += self.highest
        self.highest = prepared.classifier.range


class Indexing(Rounding):
    def calibrate(self, prepared: Any, batches: Any) -> None:
        super().calibrate(prepared, [batches[i] for i in range(len(batches))])


class Trusting(Rounding):
    def calibrate(self, prepared: Any, batches: Iterable[torch.Tensor]) -> None:
        prepared.classifier.observing = True
        for batch in batches:
            prepared(batch)
        prepared.classifier.observing = False
        prepared.classifier.range = prepared.classifier.range or 1.0


class Possessive(Rounding):
    """Keeps what belongs to a model in the calibrator."""

    def __init__(self) -> None:
        self.specs: WeakKeyDictionary[nn.Module, InputSpec] = WeakKeyDictionary()

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        prepared = super().prepare(model, spec, recipe, training=training)
        self.specs[prepared] = spec
        return prepared

    def calibrate(self, prepared: Any, batches: Iterable[torch.Tensor]) -> None:
        if prepared not in self.specs:
            raise UsageError("Another calibrator prepared this model. Use that one.")
        super().calibrate(prepared, batches)


class Helpful(Rounding):
    def calibrate(self, prepared: Any, batches: Iterable[torch.Tensor]) -> None:
        if not isinstance(prepared.classifier, RoundedLinear):
            prepared.classifier = RoundedLinear(prepared.classifier)
            attach_state(prepared, DIGITS_SPEC)
        super().calibrate(prepared, batches)


class Indifferent(Rounding):
    def export(self, converted: Any, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        return super().export(converted, state_of(converted, type(spec), calibrator="rounding"), path)


class Optimistic(Rounding):
    def convert(self, prepared: Any) -> nn.Module:
        prepared.classifier.range = prepared.classifier.range or 1.0
        return super().convert(prepared)


class Untrainable(Rounding):
    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        prepared = super().prepare(model, spec, recipe, training=False)
        return prepared.requires_grad_(requires_grad=False) if training else prepared

    def calibrate(self, prepared: Any, batches: Iterable[torch.Tensor]) -> None:
        super().calibrate(prepared, batches)
        prepared.scale = nn.Parameter(torch.ones(()))  # no input goes through it
        prepared.register_forward_hook(lambda _module, _inputs, output: output + torch.zeros((), requires_grad=True))


class Inventing(Rounding):
    def describe(self, converted: nn.Module) -> Coverage:
        (own,) = super().describe(converted).quantized
        return Coverage((own, replace(own, name="layer4.0.conv1")))


class Untidy(Rounding):
    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        artifacts = super().export(converted, spec, path)
        (path / "scratch.tmp").write_text("left")
        return artifacts


class Unchecked(Rounding):
    def export(self, *arguments: Any) -> tuple[Artifact, ...]:
        (artifact,) = super().export(*arguments)
        return (Artifact(artifact.path, artifact.format, artifact.size_bytes, ()),)


class Floating(Rounding):
    """Loads the float network, whatever was exported."""

    def load(self, path: Path) -> nn.Module:
        del path
        return digits_network()


class Unloadable(Rounding):
    """Says that it loads files, and refuses its own."""

    def load(self, path: Path) -> nn.Module:
        raise UsageError(f"Only files of another format are loaded, got {path}. Give one.")


class HalfWriting(Rounding):
    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        (path / "range.part").write_text("half") if (path / "range.txt").is_dir() else None
        return super().export(converted, spec, path)


BROKEN_CALIBRATORS: list[tuple[type[Rounding], str]] = [
    (Possessive, "test_another_calibrator_object_continues"),
    (Possessive, "test_deep_copies_work_in_the_later_steps"),
    (Helpful, "test_a_model_from_elsewhere_is_a_usage_error"),
    (Indifferent, "test_another_input_shape_is_not_exported"),
    (Anything, "test_an_unsupported_recipe_is_a_usage_error"),
    (ListOfArtifacts, "test_each_step_returns_what_the_next_one_takes"),
    (InPlace, "test_the_callers_model_stays_as_it_is"),
    (Patching, "test_the_process_stays_as_it_is"),
    (FixedBatch, "test_the_quantized_model_takes_any_batch_size"),
    (Shuffled, "test_the_quantized_model_agrees_with_the_float_model"),
    (StillFloat, "test_the_quantized_model_is_no_float_model"),
    (Dataless, "test_the_ranges_come_from_the_data"),
    (Remembering, "test_the_same_data_give_the_same_model"),
    (Indexing, "test_batches_may_be_a_generator_of_uneven_sizes"),
    (Trusting, "test_unusable_data_are_refused"),
    (Optimistic, "test_an_uncalibrated_model_is_not_converted"),
    (Untrainable, "test_training_is_refused_or_reaches_the_weights"),
    (Inventing, "test_describe_names_layers_that_exist"),
    (Untidy, "test_artifacts_are_checked_files_and_nothing_else_is_left"),
    (Unchecked, "test_artifacts_are_checked_files_and_nothing_else_is_left"),
    (Floating, "test_an_artifact_loads_back"),
    (Unloadable, "test_an_artifact_loads_back"),
    (HalfWriting, "test_a_failed_export_leaves_nothing_half_written"),
]
"""Each broken calibrator, and the test that catches it."""


class Nudging(LearningGenerator):
    """Keeps a batch of noise, and moves it up the disagreement of both networks at every step."""

    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        self.teacher, self.spec, self.rng = teacher, spec, rng
        self.inputs = torch.empty(0, *spec.shape)

    def feedback(self, student: nn.Module) -> None:
        if len(self.inputs):
            inputs = self.inputs.clone().requires_grad_()
            with untouched(student):
                (gradient,) = torch.autograd.grad((student(inputs) - self.teacher(inputs)).square().sum(), inputs)
            self.inputs = self.clamped(self.inputs + 0.05 * gradient.sign())

    def batch(self, size: int) -> Any:
        if len(self.inputs) != size:
            self.inputs = self.clamped(torch.randn(size, *self.spec.shape, generator=self.rng))
        return Batch(self.inputs.clone())

    def clamped(self, inputs: torch.Tensor) -> torch.Tensor:
        low, high = self.spec.input_range or (-2.0, 2.0)
        return inputs.clamp(low, high)

    def state(self) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.inputs = state["inputs"].clone()


class OneSize(Nudging):
    def batch(self, _size: int) -> Any:
        return super().batch(8)


class DoubleLearner(Nudging):
    def batch(self, size: int) -> Any:
        return Batch(super().batch(size).inputs.double())


class Overshooting(Nudging):
    def clamped(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 3


class BoundedLearner(Nudging):
    def clamped(self, inputs: torch.Tensor) -> torch.Tensor:
        low, high = self.spec.input_range  # type: ignore[misc]  # None where the range is not known: the mistake
        return inputs.clamp(low, high)


class LabelledByOne(Nudging):
    def batch(self, size: int) -> Any:
        return Batch(super().batch(size).inputs, torch.full((size,), self.spec.num_classes or 0))


class Stubborn(Nudging):
    def feedback(self, student: nn.Module) -> None: ...


class Careless(Nudging):
    """Runs the student as it comes, in training mode: its BatchNorm moves."""

    def feedback(self, student: nn.Module) -> None:
        student(torch.zeros(2, *self.spec.shape))
        super().feedback(student)


class GloballyDrawing(Nudging):
    def feedback(self, student: nn.Module) -> None:
        super().feedback(student)
        self.inputs = self.clamped(self.inputs + 0.1 * torch.randn(self.inputs.shape))


class SeedlessLearner(Nudging):
    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        super().begin(teacher, spec, rng.manual_seed(0))


class Forgetful(Nudging):
    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, state: dict[str, torch.Tensor]) -> None: ...


BROKEN_LEARNERS: list[tuple[type[Nudging], str]] = [
    (OneSize, "test_makes_the_batch_that_it_is_asked_for"),
    (DoubleLearner, "test_inputs_are_plain_float32_tensors"),
    (Overshooting, "test_inputs_stay_in_the_valid_range"),
    (BoundedLearner, "test_an_input_of_unknown_range_is_made_or_refused"),
    (LabelledByOne, "test_labels_are_classes"),
    (Stubborn, "test_it_learns"),
    (Careless, "test_the_student_stays_as_it_is"),
    (GloballyDrawing, "test_same_seed_same_values"),
    (SeedlessLearner, "test_another_seed_other_values"),
    (Forgetful, "test_it_goes_on_exactly_where_it_stopped"),
    (GloballyDrawing, "test_the_process_stays_as_it_is"),
]
"""Each broken learning generator, and the test that catches it."""
