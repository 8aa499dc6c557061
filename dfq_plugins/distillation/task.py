"""A distillation task: the teacher plus training inputs, and the training run on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfq_plugins.data.calibration_data import BATCH_SIZE, as_calibration_data
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.distillation.batches import Examples, split_held_out
from dfq_plugins.distillation.evaluation import require_finite
from dfq_plugins.distillation.feature_hooks import stages_alike
from dfq_plugins.distillation.loop import CheckpointDir, Student, train_student
from dfq_plugins.distillation.loss import DistillationLoss
from dfq_plugins.distillation.options import BLOCK_ENDS, USUAL_FEATURE_WEIGHT, TrainingOptions
from dfq_plugins.distillation.sources import DatasetSource, GeneratorSource, MixedSource
from dfq_plugins.distillation.task_loss import targets_of
from dfq_plugins.errors import UsageError
from dfq_plugins.host.accepted import accepted_spec
from dfq_plugins.host.options import parse_options
from dfq_plugins.inputs import joined, moved, rows, split
from dfq_plugins.model_state import device_of, frozen_copy
from dfq_plugins.network.agreement import class_agreement, output_agreement
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.origin import check_origin, warn_if_untrained
from dfq_plugins.network.outputs import joined_outputs
from dfq_plugins.network.specification import resolve_spec
from dfq_plugins.network.trial import check_finite
from dfq_plugins.statistics.augmentation import padding_of
from dfq_plugins.storage.canonical_json import jsonable
from dfq_plugins.storage.files import create_folder
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData, InputBatches
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.inputs import InputSource
    from dfq_plugins.distillation.process_group import ProcessGroup
    from dfq_plugins.distillation.sources import BatchSource
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.types import GivenSpec, Inputs, LearningGenerator, ProgressEvent, Specification


@dataclass(frozen=True)
class DistillationTask:
    """A teacher with inputs that are ready for training.

    Args:
        teacher: a frozen copy.
        spec: input specification.
        examples: training examples.
        held_out: examples held out to select the best state.
        build_generator: builds the learning generator; None without one.
        about: name and settings of the inputs' generator, for the identity of a run.
        report: called with progress events of any work on the task.
    """

    teacher: nn.Module
    spec: Specification
    examples: Examples
    held_out: Examples
    build_generator: Callable[[], LearningGenerator] | None
    about: tuple[object, ...]
    report: Callable[[ProgressEvent], None]

    @property
    def sample(self) -> Inputs:
        """A few inputs `(batch, *shape)` on the teacher's device."""
        return moved(rows(self.held_out.inputs, slice(4)), device_of(self.teacher))

    def resolve_settings(self, settings: TrainingOptions, student: nn.Module) -> TrainingOptions:
        """Return the settings with open values filled in, based on the inputs and the similarity of both networks."""
        if settings.padding is None:
            # Several inputs are not padded: what moves in one may have to move in the others. Targets, such as masks
            # and boxes, belong to the inputs as they are.
            padding = padding_of(self.spec) if isinstance(self.spec, InputSpec) and self.examples.targets is None else 0
            settings = replace(settings, padding=padding)
        if self.examples.targets is not None and settings.augments:
            raise UsageError(
                "The targets of a task loss belong to the inputs as they are, but the settings change the inputs: set "
                "mixup, jitter, flip, crop and padding to their defaults, or augment the data and its targets yourself."
            )
        if settings.feature_weight is None:
            free = settings.feature_layers == (BLOCK_ENDS,) and not settings.attention_weight
            few = rows(self.sample, slice(2))
            alike = stages_alike(self.teacher, student, few, self.spec) if free else ()
            weight = USUAL_FEATURE_WEIGHT if alike else 0.0
            settings = replace(settings, feature_weight=weight, feature_layers=alike or settings.feature_layers)
        return settings

    def output_agreement(self, student: nn.Module) -> tuple[OutputAgreement, ...]:
        """Return how closely each of the student's outputs agrees with the teacher's on the held-out samples."""
        batches, classes = split(self.held_out.inputs, 64), self.spec.num_classes
        return output_agreement(self.teacher, student.eval(), batches, len(self.held_out), classes, self.spec)

    def agreement(self, student: nn.Module) -> float:
        """Return the student's agreement with the teacher's classes on the held-out samples; NaN without classes."""
        return class_agreement(self.output_agreement(student))

    def checkpoint_dir(
        self, folder: Path | None, stage: str, settings: TrainingOptions, about: object, ranks: ProcessGroup
    ) -> CheckpointDir:
        """Return the checkpoint folder of one training, which reports its progress under the name `stage`."""
        parts = (self.examples, self.held_out)
        identity = run_identity(self.teacher, parts, settings, [stage, about, self.spec, *self.about])
        place = None if folder is None else folder / stage
        if place is not None:
            create_folder(place)
        return CheckpointDir(place, identity, lambda event: self.report(replace(event, stage=stage)), ranks)


def training_settings(given: object, kind: type[TrainingOptions]) -> TrainingOptions:
    """Parse the settings of a training; an options record is returned as it is.

    >>> training_settings({"steps": "3"}, TrainingOptions).steps
    3
    """
    if isinstance(given, TrainingOptions):
        return given
    return parse_options(kind, given, owner="the training")


def trainable_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode and float32 whose parameters require gradients exactly where the model's do.

    Raises:
        ModelError: the model cannot be copied.
    """
    copied = frozen_copy(model)
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return copied


def prepare_task(
    model: nn.Module,
    inputs: InputSource,
    spec: GivenSpec | None,
    settings: TrainingOptions,
    folder: Path | None,
    report: Callable[[ProgressEvent], None],
    registry: Registry,
) -> DistillationTask:
    """Return a task with a frozen copy of the model as the teacher; synthesizes the inputs if none are given.

    Args:
        model: the teacher; not changed.
        inputs: source of the inputs, already checked.
        spec: input specification; a synthetic data set provides its own.
        settings: validation fraction and seed.
        folder: where synthesized data is stored; None does not store it.
        report: called with progress events of the synthesis.
        registry: registry to look up generators in.

    Raises:
        ModelError: the teacher cannot be copied or inverted, or is not finite.
        DataError: the data is empty, has the wrong shape, or was made from another model.
    """
    teacher = frozen_copy(model)
    check_finite(teacher)
    data = inputs.given_or_made(model, spec, settings.seed, folder, report, registry)
    if settings.task_loss is not None and not isinstance(data, (SyntheticDataset, Tensor, Mapping)):
        data = list(data)  # it may be readable only once
    check_origin(data, teacher, allow_other_network=inputs.allow_other_network)
    warn_if_untrained(teacher)
    samples = as_calibration_data(data, spec)
    known = resolve_spec(teacher, samples.spec, registry, shape=samples.shape)
    samples.check(known)
    build_generator = None
    if inputs.learns(registry):
        build_generator = partial(inputs.learner, registry)
        learner = build_generator()
        learner.check_supported(teacher, accepted_spec(learner, "learning generator", known))
    every = gathered(data, samples)
    if settings.task_loss is not None and isinstance(data, list):
        every = replace(every, targets=targets_of(data, known))
    examples, held_out = split_held_out(every, settings.validation_fraction, settings.seed)
    return DistillationTask(teacher, known, examples, held_out, build_generator, inputs.about(registry), report)


def train(
    student: Student,
    task: DistillationTask,
    settings: TrainingOptions,
    place: CheckpointDir,
    *,
    make_loss: Callable[..., DistillationLoss] = DistillationLoss,
    pace: Callable[[BatchSource], BatchSource] | None = None,
    keep_best: bool = True,
) -> tuple[TrainingPoint, ...]:
    """Train a student in place and return the curves.

    Args:
        student: the network in training.
        task: teacher and inputs.
        settings: training settings, with open values resolved.
        place: checkpoints and progress.
        make_loss: builds the loss, with the arguments of `DistillationLoss`.
        pace: wraps the batch source.
        keep_best: end in the state that scores best on the held-out samples, rather than in the last state.
    """
    student.model.eval()
    loss = make_loss(
        task.teacher,
        settings,
        num_classes=task.spec.num_classes,
        student=student.model,
        sample=rows(task.sample, slice(2)),
        spec=task.spec,
    )
    try:
        source = _source(task, loss, settings)
        paced = source if pace is None else pace(source)
        return train_student(student, loss, paced, task.held_out, settings, place, keep_best=keep_best)
    finally:
        loss.close()


def _source(task: DistillationTask, loss: DistillationLoss, settings: TrainingOptions) -> BatchSource:
    """Return the batch source: the data set, the learning generator, or both."""
    fill = task.spec.map(lambda one: one.pad_value)
    if task.build_generator is None:
        return DatasetSource(answered(task.examples, loss, settings), settings, task.spec.num_classes, fill)
    made = max(1, round(settings.generator_fraction * settings.batch_size))
    share = replace(settings, batch_size=made)
    learner = GeneratorSource(task.build_generator(), frozen_copy(task.teacher), task.spec, share, task.report)
    if made == settings.batch_size:
        return learner
    rest = replace(settings, batch_size=settings.batch_size - made)
    return MixedSource(learner, DatasetSource(task.examples, rest, task.spec.num_classes, fill))


def run_identity(teacher: nn.Module, parts: tuple[Examples, Examples], settings: TrainingOptions, about: object) -> str:
    """Return the digest of everything that the result of a training depends on, in hexadecimal.

    The time budget is excluded: a run may be resumed with a different one.
    """
    training = replace(settings, max_seconds=None).as_record()
    content = jsonable([model_digest(teacher), [part.digest for part in parts], training, about])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def gathered(data: CalibrationData, samples: InputBatches) -> Examples:
    """Load all samples into memory, with the labels of a synthetic data set."""
    if isinstance(data, SyntheticDataset) and data.manifest.labels != "none":
        batches = list(data.loader(batch_size=BATCH_SIZE))
        labels = torch.cat([batch.labels for batch in batches])
        return Examples(joined([batch.inputs for batch in batches]), labels)
    return Examples(joined(list(samples)))


def answered(examples: Examples, loss: DistillationLoss, settings: TrainingOptions) -> Examples:
    """Return the examples with the teacher's outputs precomputed, unless each step has to compute them itself."""
    if settings.augments or settings.compares_features:
        return examples
    answers = joined_outputs(
        {name: answer.cpu() for name, answer in loss.teacher_outputs(batch).items()}
        for batch in split(examples.inputs, settings.batch_size)
    )
    require_finite(answers)
    return replace(examples, answers=answers)
