"""What a student is taught by: the teacher, its inputs, and a run of the one distillation loop on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from dfq_plugins.allocation import kept_memory
from dfq_plugins.calibration_data import as_calibration_data
from dfq_plugins.checks import check_finite, checked_spec, complete_spec
from dfq_plugins.distillation.batches import split_held_out
from dfq_plugins.distillation.loop import Student, Workplace, distill
from dfq_plugins.distillation.loss import DistillationLoss
from dfq_plugins.distillation.options import BLOCK_ENDS, USUAL_FEATURE_WEIGHT, DistillationOptions
from dfq_plugins.distillation.sources import DatasetSource, GeneratorSource, MixedSource
from dfq_plugins.distillation.taps import stages_alike
from dfq_plugins.model_state import device_of, frozen_copy
from dfq_plugins.options import parse_options
from dfq_plugins.presentation import border_of
from dfq_plugins.storage import create_folder
from dfq_plugins.top1 import top1_agreement
from dfq_plugins.training_material import answered, check_generator, check_origin, gathered, run_identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.ranks import Ranks
    from dfq_plugins.distillation.sources import Source
    from dfq_plugins.lesson_inputs import Inputs
    from dfq_plugins.registry import Registry
    from dfq_plugins.types import InputSpec, LearningGenerator, ProgressEvent


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
        report: hears of the progress of whatever works on the lesson.
    """

    teacher: nn.Module
    spec: InputSpec
    examples: Examples
    held_out: Examples
    maker: Callable[[], LearningGenerator] | None
    about: tuple[object, ...]
    report: Callable[[ProgressEvent], None]

    @property
    def sample(self) -> Tensor:
        """A few inputs `(batch, *shape)`, where the teacher computes."""
        return self.held_out.inputs[:4].to(device_of(self.teacher))

    def settled(self, settings: DistillationOptions, student: nn.Module) -> DistillationOptions:
        """Return the settings with what was left open decided by the inputs, and by how alike both networks are."""
        if settings.border is None:
            settings = replace(settings, border=border_of(self.spec))
        if settings.feature_weight is None:
            free = settings.taps == (BLOCK_ENDS,) and not settings.attention_weight
            alike = stages_alike(self.teacher, student, self.sample[:2]) if free else ()
            weight = USUAL_FEATURE_WEIGHT if alike else 0.0
            settings = replace(settings, feature_weight=weight, taps=alike or settings.taps)
        return settings

    def agreement(self, student: nn.Module) -> float:
        """Return the share of held-out samples that the student puts in the teacher's class; NaN for no classifiers."""
        batches = torch.split(self.held_out.inputs, 64)
        return top1_agreement(self.teacher, student.eval(), batches, len(self.held_out))

    def workplace(
        self, folder: Path | None, stage: str, settings: DistillationOptions, about: object, ranks: Ranks
    ) -> Workplace:
        """Return where one training keeps its checkpoints, whose progress goes by the name `stage`."""
        parts = (self.examples, self.held_out)
        identity = run_identity(self.teacher, parts, settings, [stage, about, self.spec, *self.about])
        place = None if folder is None else folder / stage
        if place is not None:
            create_folder(place)
        return Workplace(place, identity, lambda event: self.report(replace(event, stage=stage)), ranks)


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
        inputs: where the inputs come from, checked.
        spec: what an input looks like; a synthetic data set brings its own.
        settings: share held out, seed.
        folder: keeps a set that is made here; None keeps none.
        report: hears of its synthesis.
        registry: where generators are looked up.

    Raises:
        ModelError: a teacher that cannot be copied or inverted, or is not finite.
        DataError: data that is empty, of the wrong shape, or another model's.
    """
    teacher = frozen_copy(model)
    check_finite(teacher)
    data = inputs.given_or_made(model, spec, settings.seed, folder, report, registry)
    check_origin(data, teacher, strict=inputs.strict)
    samples = as_calibration_data(data, spec)
    spec = checked_spec(teacher, samples.spec or complete_spec(teacher, shape=samples.shape), registry)
    samples.check(spec)
    maker = None
    if inputs.learns(registry):
        maker = partial(inputs.learner, registry)
        check_generator(maker(), teacher, spec)
    examples, held_out = split_held_out(gathered(data, samples), settings.held_out, settings.seed)
    return Lesson(teacher, spec, examples, held_out, maker, inputs.about(registry), report)


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
        settings: of the training, settled.
        place: checkpoints and progress.
        make_loss: called as `DistillationLoss` is.
        pace: wraps the source of the batches.
        keep_best: end in the best state by the held-out samples, or in the last.
    """
    student.model.eval()
    loss = make_loss(lesson.teacher, settings, student=student.model, sample=lesson.sample[:2])
    try:
        source = _source(lesson, loss, settings)
        paced = source if pace is None else pace(source)
        with kept_memory():
            return distill(student, loss, paced, lesson.held_out, settings, place, keep_best=keep_best)
    finally:
        loss.close()


def _source(lesson: Lesson, loss: DistillationLoss, settings: DistillationOptions) -> Source:
    """Return where the batches come from: the data set, the generator that learns beside the student, or both."""
    fill = lesson.spec.outside
    if lesson.maker is None:
        return DatasetSource(answered(lesson.examples, loss, settings), settings, lesson.spec.num_classes, fill)
    made = max(1, round(settings.generated * settings.batch_size))
    share = replace(settings, batch_size=made)
    learner = GeneratorSource(lesson.maker(), frozen_copy(lesson.teacher), lesson.spec, share, lesson.report)
    if made == settings.batch_size:
        return learner
    rest = replace(settings, batch_size=settings.batch_size - made)
    return MixedSource(learner, DatasetSource(lesson.examples, rest, lesson.spec.num_classes, fill))
