"""Orchestration of distillation: a trained network and inputs -> a smaller network that answers as it does."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from dfq_plugins.distillation.inheritance import inherit_weights
from dfq_plugins.distillation.inputs import InputSource
from dfq_plugins.distillation.loop import Student
from dfq_plugins.distillation.options import DistillOptions
from dfq_plugins.distillation.process_group import joined_process_group
from dfq_plugins.distillation.task import prepare_task, train, trainable_copy, training_settings, work_folder
from dfq_plugins.errors import DfqWarning, ModelError, UsageError
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import preserve_global_state
from dfq_plugins.network.cost import Cost, measure_cost
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.masks import bake
from dfq_plugins.network.saved import save_network
from dfq_plugins.network.trial import trial_run
from dfq_plugins.storage.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.distillation.task import DistillationTask
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import InputSpec, LearningGenerator, ProgressEvent


class Ticket(Protocol):
    """A lottery ticket of the student, `dfq_plugins.pruning.Ticket`: initial weights, and which of them stay zero."""

    @property
    def sparsity(self) -> float:
        """Share of the weights that stay zero."""
        ...

    def rewind(self, model: nn.Module) -> nn.Module:
        """Return the model with the ticket's initial weights and masks."""
        ...


class LargerStudentWarning(DfqWarning):
    """The student has more parameters than its teacher."""


@dataclass(frozen=True)
class DistillRun:
    """A student with everything that is known about its training.

    Args:
        model: the trained student, in eval mode.
        spec: what an input looks like.
        teacher_cost: parameters and MACs of the teacher.
        student_cost: those of the student.
        agreement_before: share of the held-out samples on which the untrained student named the teacher's class; NaN
            where the network is no classifier.
        agreement: the same of the trained student.
        history: points of the training's curves.
        training: the settings of the training.
        held_out: number of samples that were held out.
        files: what was written.
        inherited: the student's layers that began with the teacher's weights.
    """

    model: nn.Module
    spec: InputSpec
    teacher_cost: Cost
    student_cost: Cost
    agreement_before: float
    agreement: float
    history: tuple[TrainingPoint, ...]
    training: TrainingOptions
    held_out: int
    files: tuple[Path, ...] = ()
    inherited: tuple[str, ...] = ()


def distill(
    teacher: nn.Module,
    student: nn.Module,
    data: CalibrationData | None = None,
    *,
    spec: InputSpec | None = None,
    training: Mapping[str, object] | TrainingOptions | None = None,
    generator: str | LearningGenerator | None = None,
    generator_options: Mapping[str, object] | object | None = None,
    num_samples: int = 1024,
    ticket: Ticket | None = None,
    inherit: bool = False,
    output: Path | str | None = None,
    factory: str | None = None,
    work: Path | str | None = None,
    strict: bool = False,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> DistillRun:
    """Train a network of your choice to answer as a trained one does.

    Under `torchrun`, each process takes a part of every batch and returns the same student; the first one writes files.

    Args:
        teacher: trained network; stays as it is.
        student: the network to train, smaller as a rule; a copy of it is trained from the weights that it has.
        data: what to train on, synthetic or real; a part of it selects the best state. None: a generator makes it.
        spec: what an input looks like; a synthetic data set brings its own.
        training: settings of the training, as a mapping with the defaults of `DistillOptions`, or as a record.
        generator: name of a generator that makes the data from the teacher, in place of `data`; or of one that learns
            beside the student and makes a share of each batch (`training.generator_fraction`), or such an object.
        generator_options: settings of a generator that is given by its name.
        num_samples: how many samples a generator of data sets makes.
        ticket: a lottery ticket of the student: its initial weights are trained, and what it masks stays zero.
        inherit: begin with the weights of those layers of the teacher that have the student's names and shapes; where
            the teacher has more blocks in a row, those of some, evenly.
        output: folder for the student; None writes nothing.
        factory: what builds the student on the command line, for the record in that folder: `file.py:factory`.
        work: folder for checkpoints: the same call goes on where an interrupted one stopped. None keeps none.
        strict: refuse a data set that was made from another model, instead of warning.
        listeners: called with every `ProgressEvent`.
        registry: where plugins are looked up; None takes those that are installed.

    Raises:
        UsageError: neither data nor a generator, an option or name that cannot be used, or nothing to inherit.
        PluginError: an unknown generator.
        ModelError: networks that return different shapes, or a student without parameters to train.
        DataError: data that is empty, of the wrong shape, or another model's; a work folder of another run; a ticket
            of another network.
        DivergedError: the loss is not finite any more; the last good checkpoint stays in the work folder.
    """
    if inherit and ticket is not None:
        raise UsageError(
            "A ticket brings the student's first weights, and so does the teacher. Give ticket or inherit."
        )
    registry = registry or get_registry()
    settings = training_settings(training, DistillOptions)
    inputs = InputSource(data, generator=generator, options=generator_options, num_samples=num_samples, strict=strict)
    inputs.check(registry)
    broadcast = Broadcast(listeners, registry)
    with preserve_global_state(), joined_process_group() as ranks, work_folder(work, ranks) as folder:
        torch.manual_seed(settings.seed)  # for whatever a student or a generator draws from the global state
        task = prepare_task(teacher, inputs, spec, settings, folder, broadcast, registry)
        network = trainable_copy(student) if ticket is None else ticket.rewind(trainable_copy(student))
        check_student(task, network)
        inherited = inherit_weights(task.teacher, network) if inherit else ()
        costs = measure_cost(task.teacher, task.spec.shape), measure_cost(network.eval(), task.spec.shape)
        warn_of_larger(*costs)
        about = [model_digest(network), [] if ticket is None else ["ticket", ticket.sparsity]]
        settings = task.settled(settings, network)
        place = task.checkpoint_dir(folder, "distill", settings, about, ranks)
        before = task.agreement(network)
        history = train(Student(network), task, settings, place)
        bake(network)
        after, cost = task.agreement(network), measure_cost(network, task.spec.shape)
        run = DistillRun(
            model=network,
            spec=task.spec,
            teacher_cost=costs[0],
            student_cost=cost,
            agreement_before=before,
            agreement=after,
            history=history,
            training=settings,
            held_out=len(task.held_out),
            inherited=inherited,
        )
        if output is not None and ranks.leads:
            saved = save_network(network, Path(output), factory=factory, about=_about(run, task))
            run = replace(run, files=(saved,))
        ranks.wait()
    return run


def check_student(task: DistillationTask, student: nn.Module) -> None:
    """Make sure that a student takes what its teacher takes, and returns what it returns.

    Raises:
        ModelError: it does not.
    """
    theirs, ours = (trial_run(model.eval(), task.spec.shape).shape[1:] for model in (task.teacher, student))
    if theirs != ours:
        raise ModelError(
            f"Teacher and student must return the same shape, got {tuple(theirs)} values a sample from the teacher and "
            f"{tuple(ours)} from the student. Give a student with the teacher's last layer."
        )


def warn_of_larger(teacher: Cost, student: Cost) -> None:
    """Warn of a student with more parameters than its teacher."""
    if student.parameters > teacher.parameters:
        warnings.warn(
            f"The student is larger than the teacher: {student.parameters:,} parameters against "
            f"{teacher.parameters:,}. It can learn no more than the teacher knows; distil into a smaller one.",
            LargerStudentWarning,
            stacklevel=3,
        )


def _about(run: DistillRun, task: DistillationTask) -> dict[str, object]:
    return {
        "kind": "distilled",
        "teacher": {"digest": model_digest(task.teacher), **asdict(run.teacher_cost)},
        "student": asdict(run.student_cost),
        "input_spec": asdict(run.spec),
        "inputs": {"by": task.about, "samples": len(task.examples) + len(task.held_out)},
        "inherited": list(run.inherited),
        "agreement": {"before": run.agreement_before, "after": run.agreement, "samples": run.held_out},
        "settings": asdict(run.training),
        "history": [asdict(point) for point in run.history],
        "versions": library_versions(),
    }
