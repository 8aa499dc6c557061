"""What a student is taught by: the teacher, its inputs, and a run of the one distillation loop on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from dfq_plugins.allocation import kept_memory
from dfq_plugins.calibration_data import as_calibration_data
from dfq_plugins.checks import check_finite, complete_spec
from dfq_plugins.distillation.batches import split_held_out
from dfq_plugins.distillation.loop import Student, Workplace, distill
from dfq_plugins.distillation.loss import DistillationLoss
from dfq_plugins.distillation.options import DistillationOptions
from dfq_plugins.distillation.sources import DatasetSource, GeneratorSource
from dfq_plugins.errors import UsageError
from dfq_plugins.generators import DEFAULT_GENERATOR
from dfq_plugins.model_state import device_of, frozen_copy
from dfq_plugins.options import parse_options
from dfq_plugins.pipeline import checked_spec, synthesize, top1_agreement
from dfq_plugins.presentation import border_of
from dfq_plugins.statistics import statistics_layers
from dfq_plugins.storage import create_folder
from dfq_plugins.training_material import (
    answered,
    check_generator,
    check_origin,
    gathered,
    learning_generator,
    name_of,
    run_identity,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from dfq_plugins.calibration_data import CalibrationData
    from dfq_plugins.dataset import SyntheticDataset
    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.ranks import Ranks
    from dfq_plugins.distillation.sources import Source
    from dfq_plugins.registry import Registry
    from dfq_plugins.types import InputSpec, LearningGenerator, ProgressEvent

SELECTION_SAMPLES = 512
"""Samples made to select the best state by, where a generator that learns makes all the others."""


@dataclass(frozen=True)
class Inputs:
    """Where a student's inputs come from, as the caller gave it.

    Args:
        data: what to train on; None where a generator makes it.
        generator: the name of a generator of either kind, or an object that learns against the student.
        options: settings of a generator that is given by its name.
        num_samples: how many samples a generator of data sets makes.
        strict: refuse a set that was made from another model.
    """

    data: CalibrationData | None = None
    generator: str | LearningGenerator | None = None
    options: Mapping[str, object] | object | None = None
    num_samples: int = 1024
    strict: bool = False

    def learns(self, registry: Registry) -> bool:
        """Whether the generator learns against the student."""
        if isinstance(self.generator, str):
            return registry.find("generator", self.generator).learns
        return self.generator is not None


@dataclass(frozen=True)
class Lesson:
    """A teacher with inputs that are ready for training.

    Args:
        teacher: a frozen copy.
        spec: what an input looks like.
        examples: to train on.
        held_out: selects the best state.
        maker: builds the generator that learns against the student, where there is one.
        about: what the inputs were made by, for the identity of a run.
    """

    teacher: nn.Module
    spec: InputSpec
    examples: Examples
    held_out: Examples
    maker: Callable[[], LearningGenerator] | None
    about: tuple[object, ...]

    @property
    def sample(self) -> Tensor:
        """A few inputs `(batch, *shape)`, where the teacher computes."""
        return self.held_out.inputs[:4].to(device_of(self.teacher))

    def agreement(self, student: nn.Module) -> float:
        """Return the share of held-out samples that the student puts in the teacher's class; NaN for no classifiers."""
        batches = torch.split(self.held_out.inputs, 64)
        return top1_agreement(self.teacher, student.eval(), batches, len(self.held_out))

    def workplace(
        self,
        folder: Path | None,
        stage: str,
        settings: DistillationOptions,
        about: object,
        report: Callable[[ProgressEvent], None],
        ranks: Ranks,
    ) -> Workplace:
        """Return where one training keeps its checkpoints, whose progress goes by the name `stage`."""
        parts = (self.examples, self.held_out)
        identity = run_identity(self.teacher, parts, settings, [stage, about, self.spec, *self.about])
        place = None if folder is None else folder / stage
        if place is not None:
            create_folder(place)
        return Workplace(place, identity, lambda event: report(replace(event, stage=stage)), ranks)


def training_settings(given: object, kind: type[DistillationOptions]) -> DistillationOptions:
    """Return the settings of a training; a record of any kind is taken as it is.

    >>> training_settings({"steps": "3"}, DistillationOptions).steps
    3
    """
    if isinstance(given, DistillationOptions):
        return given
    return parse_options(kind, given, owner="the training")


def trainable_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode and float32, whose parameters take gradients where the model's do.

    Raises:
        ModelError: the model cannot be copied.
    """
    copied = frozen_copy(model)
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return copied


def prepare_lesson(
    model: nn.Module,
    inputs: Inputs,
    spec: InputSpec | None,
    settings: DistillationOptions,
    folder: Path | None,
    report: Callable[[ProgressEvent], None],
    registry: Registry,
) -> Lesson:
    """Return a frozen copy of the model as the teacher, with the inputs to teach by; makes them where asked to.

    Args:
        model: the teacher; stays as it is.
        inputs: where the inputs come from.
        spec: what an input looks like; a synthetic data set brings its own.
        settings: share held out, seed.
        folder: keeps a set that is made here; None keeps none.
        report: hears of its synthesis.
        registry: where generators are looked up.

    Raises:
        UsageError: neither data nor a generator, or both of a kind that excludes the other.
        PluginError: an unknown or unavailable generator.
        ModelError: a teacher that cannot be copied or inverted, or is not finite.
        DataError: data that is empty, of the wrong shape, or another model's.
    """
    teacher = frozen_copy(model)
    check_finite(teacher)
    data = _data(model, inputs, spec, settings, folder, report, registry)
    check_origin(data, teacher, strict=inputs.strict)
    samples = as_calibration_data(data, spec)
    spec = checked_spec(teacher, samples.spec or complete_spec(teacher, shape=samples.shape), registry)
    samples.check(spec)
    maker = None
    if inputs.learns(registry):
        maker = partial(_learner, inputs, registry)
        check_generator(maker(), teacher, spec)
    examples, held_out = split_held_out(gathered(data, samples), settings.held_out, settings.seed)
    about = (name_of(inputs.generator), settings_of(inputs.generator, inputs.options, registry))
    return Lesson(teacher, spec, examples, held_out, maker, about)


def teach(
    student: Student,
    lesson: Lesson,
    settings: DistillationOptions,
    place: Workplace,
    *,
    make_loss: Callable[..., DistillationLoss] = DistillationLoss,
    pace: Callable[[Source], Source] | None = None,
    keep_best: bool = True,
) -> tuple[TrainingPoint, ...]:
    """Train a student in place and return the curves.

    Args:
        student: the network in training.
        lesson: teacher and inputs.
        settings: of the training.
        place: checkpoints and progress.
        make_loss: called as `DistillationLoss` is.
        pace: wraps the source of the batches.
        keep_best: end in the best state by the held-out samples, or in the last.
    """
    if settings.border is None:
        settings = replace(settings, border=border_of(lesson.spec))
    student.model.eval()
    loss = make_loss(lesson.teacher, settings, student=student.model, sample=lesson.sample[:2])
    try:
        source: Source
        if lesson.maker is not None:
            source = GeneratorSource(lesson.maker(), frozen_copy(lesson.teacher), lesson.spec, settings)
        else:
            fill = None if lesson.spec.bounds is None else lesson.spec.bounds[0]
            ready = answered(lesson.examples, loss, settings)
            source = DatasetSource(ready, settings, lesson.spec.num_classes, fill)
        paced = source if pace is None else pace(source)
        with kept_memory():
            return distill(student, loss, paced, lesson.held_out, settings, place, keep_best=keep_best)
    finally:
        loss.close()


def _learner(inputs: Inputs, registry: Registry) -> LearningGenerator:
    made = learning_generator(inputs.generator, inputs.options, registry)
    assert made is not None  # noqa: S101  for the type checker: there is a generator
    return made


def _data(
    model: nn.Module,
    inputs: Inputs,
    spec: InputSpec | None,
    settings: DistillationOptions,
    folder: Path | None,
    report: Callable[[ProgressEvent], None],
    registry: Registry,
) -> CalibrationData:
    """Return the data that was given, or make it."""
    if inputs.generator is None and inputs.data is None:
        raise UsageError(
            f"A student learns on inputs: give data, or the name of a generator, e.g. generator={DEFAULT_GENERATOR!r}."
        )
    learns = inputs.learns(registry)
    if inputs.data is not None:
        if inputs.generator is not None and not learns:
            raise UsageError(
                f"Generator {inputs.generator!r} makes data sets, and data is given already. Give one of the two."
            )
        return inputs.data
    made: SyntheticDataset
    generator, options, count = inputs.generator, inputs.options, inputs.num_samples
    if learns:
        generator, options, count = (
            DEFAULT_GENERATOR if statistics_layers(model) else "gaussian",
            None,
            SELECTION_SAMPLES,
        )
    made = synthesize(
        model,
        spec,
        generator=str(generator),
        num_samples=count,
        seed=settings.seed,
        options=options,
        output=None if folder is None else folder / "inputs",
        listeners=[report],
        registry=registry,
    )
    return made
