"""Orchestration of distillation: a trained network and inputs -> a smaller network that reproduces its outputs."""

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
from dfq_plugins.distillation.task import prepare_task, train, trainable_copy, training_settings
from dfq_plugins.errors import DfqWarning, UsageError
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import preserve_global_state
from dfq_plugins.network.agreement import class_agreement
from dfq_plugins.network.cost import Cost, measure_cost
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.masks import bake
from dfq_plugins.network.outputs import matching_outputs
from dfq_plugins.network.saved import save_network
from dfq_plugins.network.trial import trial_run
from dfq_plugins.storage.locks import work_folder
from dfq_plugins.storage.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.distillation.task import DistillationTask
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.types import GivenSpec, LearningGenerator, ProgressEvent, Specification


class TicketLike(Protocol):
    """A lottery ticket of the student, `dfq_plugins.pruning.Ticket`: its initial weights and masks."""

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
    """A trained student with the record of its training.

    Args:
        model: the trained student, in eval mode.
        spec: input specification.
        teacher_cost: parameters and MACs of the teacher.
        student_cost: parameters and MACs of the student.
        agreement_before: share of the held-out samples for which the untrained student predicted the teacher's class;
            NaN if the network is not a classifier.
        agreement: the same share for the trained student.
        history: points of the training curves.
        training: training settings.
        held_out: number of held-out samples.
        files: written files.
        output_agreement_before: what `agreement_before` is, by output.
        output_agreement: the same for the finished network.
        inherited: the student's layers that were initialized from the teacher.
    """

    model: nn.Module
    spec: Specification
    teacher_cost: Cost
    student_cost: Cost
    agreement_before: float
    agreement: float
    history: tuple[TrainingPoint, ...]
    training: TrainingOptions
    held_out: int
    files: tuple[Path, ...] = ()
    output_agreement_before: tuple[OutputAgreement, ...] = ()
    output_agreement: tuple[OutputAgreement, ...] = ()
    inherited: tuple[str, ...] = ()


def distill(
    teacher: nn.Module,
    student: nn.Module,
    data: CalibrationData | None = None,
    *,
    spec: GivenSpec | None = None,
    training: Mapping[str, object] | TrainingOptions | None = None,
    generator: str | LearningGenerator | None = None,
    generator_options: Mapping[str, object] | object | None = None,
    num_samples: int = 1024,
    ticket: TicketLike | None = None,
    inherit: bool = False,
    output: Path | str | None = None,
    factory: str | None = None,
    work: Path | str | None = None,
    allow_other_network: bool = False,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> DistillRun:
    """Train a network of your choice to reproduce the outputs of a trained network.

    Under `torchrun`, each process takes a part of every batch and returns the same student; the first one writes files.

    Args:
        teacher: trained network; not changed.
        student: the network to train, usually a smaller one; a copy is trained, starting from the student's weights.
        data: training data, synthetic or real; a part of it selects the best state. None: a generator makes it.
        spec: input specification; a synthetic data set provides its own.
        training: training settings, as a mapping with the defaults of `DistillOptions`, or as a record.
        generator: name of a generator that synthesizes the data from the teacher, instead of `data`; or the name of a
            learning generator, or such an object, which makes a share of each batch (`training.generator_fraction`).
        generator_options: settings of a generator given by name.
        num_samples: number of samples that a data generator makes.
        ticket: lottery ticket of the student: its initial weights are trained, and masked weights stay zero.
        inherit: initialize the student from the teacher's layers with the same names and shapes; if the teacher has
            more blocks in a sequence, from evenly spaced ones.
        output: folder for the student; None writes nothing.
        factory: how the command line builds the student, recorded in that folder: `file.py:factory`.
        work: folder for checkpoints: repeating the call resumes an interrupted run. None stores no checkpoints.
        allow_other_network: only warn of data that was synthesized from another network, instead of rejecting it.
        listeners: called with every `ProgressEvent`.
        registry: registry to look up plugins in; None uses the installed plugins.

    Raises:
        UsageError: neither data nor a generator is given, an option or name is invalid, or no layer can be inherited.
        PluginError: the generator is unknown.
        ModelError: the networks return different shapes, or the student has no trainable parameters.
        DataError: the data is empty, has the wrong shape, or was made from another model; the work folder belongs to
            another run; or the ticket belongs to another network.
        DivergedError: the loss is no longer finite; the last good checkpoint stays in the work folder.
    """
    if inherit and ticket is not None:
        raise UsageError(
            "Both a ticket and inherit provide the student's initial weights. Give ticket or inherit, not both."
        )
    registry = registry or get_registry()
    settings = training_settings(training, DistillOptions)
    inputs = InputSource(
        data,
        generator=generator,
        options=generator_options,
        num_samples=num_samples,
        allow_other_network=allow_other_network,
    )
    inputs.check(registry)
    broadcast = Broadcast(listeners, registry)
    with preserve_global_state(), joined_process_group() as ranks, work_folder(work, writes=ranks.leads) as folder:
        torch.manual_seed(settings.seed)  # for students and generators that draw from the global random state
        task = prepare_task(teacher, inputs, spec, settings, folder, broadcast, registry)
        network = trainable_copy(student) if ticket is None else ticket.rewind(trainable_copy(student))
        check_student(task, network)
        inherited = inherit_weights(task.teacher, network) if inherit else ()
        costs = measure_cost(task.teacher, task.spec), measure_cost(network.eval(), task.spec)
        warn_of_larger(*costs)
        about = [model_digest(network), [] if ticket is None else ["ticket", ticket.sparsity]]
        settings = task.resolve_settings(settings, network)
        place = task.checkpoint_dir(folder, "distill", settings, about, ranks)
        before = task.output_agreement(network)
        history = train(Student(network), task, settings, place)
        bake(network)
        after, cost = task.output_agreement(network), measure_cost(network, task.spec)
        run = DistillRun(
            model=network,
            spec=task.spec,
            teacher_cost=costs[0],
            student_cost=cost,
            agreement_before=class_agreement(before),
            agreement=class_agreement(after),
            output_agreement_before=before,
            output_agreement=after,
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
    """Check that a student accepts the teacher's inputs and returns the teacher's outputs.

    Raises:
        ModelError: it does not.
    """
    theirs, ours = (trial_run(model.eval(), task.spec) for model in (task.teacher, student))
    matching_outputs(ours, theirs)


def warn_of_larger(teacher: Cost, student: Cost) -> None:
    """Warn if the student has more parameters than its teacher."""
    if student.parameters > teacher.parameters:
        warnings.warn(
            f"The student is larger than the teacher: {student.parameters:,} parameters against "
            f"{teacher.parameters:,}. It can learn no more than the teacher knows; distill into a smaller one.",
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
        "settings": run.training.as_record(),
        "history": [asdict(point) for point in run.history],
        "versions": library_versions(),
    }
