"""Orchestration of pruning: a trained network and inputs -> a smaller or sparser network with similar outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation.inputs import InputSource
from dfq_plugins.distillation.loop import Student
from dfq_plugins.distillation.options import DistillOptions
from dfq_plugins.distillation.process_group import ProcessGroup, joined_process_group
from dfq_plugins.distillation.task import DistillationTask, prepare_task, train, training_settings
from dfq_plugins.errors import UsageError
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.options import parse_options
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.network.agreement import class_agreement
from dfq_plugins.network.cost import Cost, measure_cost
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.masks import bake, masks_of
from dfq_plugins.network.saved import save_network
from dfq_plugins.pruning.filters import Amount, prunable, selected, sparsify, take_out
from dfq_plugins.pruning.magnitude import prune_weights
from dfq_plugins.pruning.options import PruneTrainingOptions, PruningOptions
from dfq_plugins.pruning.selection import kept_filters
from dfq_plugins.pruning.ticket import Ticket
from dfq_plugins.storage.locks import work_folder
from dfq_plugins.storage.versions import library_versions
from dfq_plugins.types import NetworkSpec, as_specification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.pruning.graph import Groups
    from dfq_plugins.pruning.selection import Removed
    from dfq_plugins.types import GivenSpec, LearningGenerator, ProgressEvent, Specification

TICKET_FOLDER = "ticket"


@dataclass(frozen=True)
class PrunedLayer:
    """The size of a layer before and after pruning.

    Args:
        name: name of the layer; for a group of filters, of its first layer.
        before: number of filters, or of weights, before pruning.
        after: number of filters, or of nonzero weights, after pruning.
    """

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class PruneRun:
    """A pruned network with the record of its pruning.

    Args:
        model: the pruned network, in eval mode, with the original layers.
        spec: input specification.
        method: "filters", "weights" or "ticket".
        before: parameters and MACs of the original network.
        after: parameters and MACs of the pruned network.
        layers: size of each layer before and after.
        left: layers that could not be pruned, with the reason.
        agreement_before: share of the held-out samples for which the network predicted the original class after pruning
            and before retraining; NaN if it is not a classifier.
        agreement: the same share for the finished network.
        sparsity_history: points of the training curves while scales were pushed toward zero.
        history: points of the training curves after pruning.
        options: pruning settings.
        training: settings of the training after pruning.
        held_out: number of held-out samples.
        files: written files.
        output_agreement_before: what `agreement_before` is, by output.
        output_agreement: the same for the finished network.
    """

    model: nn.Module
    spec: Specification
    method: str
    before: Cost
    after: Cost
    layers: tuple[PrunedLayer, ...]
    left: tuple[tuple[str, str], ...]
    agreement_before: float
    agreement: float
    sparsity_history: tuple[TrainingPoint, ...]
    history: tuple[TrainingPoint, ...]
    options: PruningOptions
    training: TrainingOptions
    held_out: int
    files: tuple[Path, ...] = ()
    output_agreement_before: tuple[OutputAgreement, ...] = ()
    output_agreement: tuple[OutputAgreement, ...] = ()


def prune(
    model: nn.Module,
    data: CalibrationData | None = None,
    *,
    macs: float | None = None,
    threshold: float | None = None,
    sparsity: float | None = None,
    rewind_to: Mapping[str, Tensor] | nn.Module | None = None,
    spec: GivenSpec | None = None,
    options: Mapping[str, object] | PruningOptions | None = None,
    training: Mapping[str, object] | TrainingOptions | None = None,
    generator: str | LearningGenerator | None = None,
    generator_options: Mapping[str, object] | object | None = None,
    num_samples: int = 1024,
    output: Path | str | None = None,
    factory: str | None = None,
    work: Path | str | None = None,
    allow_other_network: bool = False,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> PruneRun:
    """Remove filters from a network, or set individual weights to zero, and retrain it to reproduce its old outputs.

    Exactly one of `macs`, `threshold` and `sparsity` sets how much is pruned. The scales of the BatchNorm after each
    filter, which a penalty first pushes toward zero, rate the filters. Source: Zhu et al. 2020 (arXiv 2010.07334).

    Args:
        model: trained network, the teacher; not changed.
        data: training data, synthetic or real; a part of it selects the best state. None: a generator makes it.
        macs: share of the MACs to keep; filters with the smallest scales are removed.
        threshold: remove filters with a smaller scale, e.g. 0.1 or 0.01.
        sparsity: share of the weights of convolutions and linear layers to set to zero, the smallest first.
        rewind_to: with `sparsity`: the network before its training, or its state dictionary. The remaining weights
            start from there: a lottery ticket.
        spec: input specification; a synthetic data set provides its own.
        options: pruning settings.
        training: training settings, as a mapping with the defaults of `PruneTrainingOptions` (`DistillOptions` for a
            ticket), or as a record.
        generator: name of a generator that makes the data, instead of `data`; or the name of a learning generator, or
            such an object, which makes a share of each batch (`training.generator_fraction`).
        generator_options: settings of a generator given by name.
        num_samples: number of samples that a data generator makes.
        output: folder for the network, loaded on the command line as `saved:FOLDER`; None writes nothing.
        factory: how the command line builds the original network, recorded in that folder: `file.py:factory`.
        work: folder for checkpoints: repeating the call resumes an interrupted run. None stores no checkpoints.
        allow_other_network: only warn of data that was synthesized from another network, instead of rejecting it.
        listeners: called with every `ProgressEvent`.
        registry: registry to look up plugins in; None uses the installed plugins.

    Raises:
        UsageError: an amount, option or name is invalid, or the amount would empty a layer.
        PluginError: the generator is unknown, or torch-pruning is not installed.
        ModelError: the network cannot be traced, or no part of it can be pruned.
        DataError: the data is empty, has the wrong shape, or was made from another model; or the work folder belongs to
            another run.
        DivergedError: the loss is no longer finite; the last good checkpoint stays in the work folder.
    """
    amount = Amount(macs, threshold, sparsity)
    if rewind_to is not None and sparsity is None:
        raise UsageError(
            "rewind_to makes a lottery ticket of individual weights: give sparsity as well, e.g. sparsity=0.8."
        )
    registry = registry or get_registry()
    record = parse_options(PruningOptions, options, owner="pruning")
    settings = training_settings(training, PruneTrainingOptions if rewind_to is None else DistillOptions)
    inputs = InputSource(
        data,
        generator=generator,
        options=generator_options,
        num_samples=num_samples,
        allow_other_network=allow_other_network,
    )
    inputs.check(registry)
    broadcast = Broadcast(listeners, registry)
    if sparsity is None:
        _require_one_input(spec, data)
    with preserve_global_state(), joined_process_group() as ranks, work_folder(work, writes=ranks.leads) as folder:
        torch.manual_seed(settings.seed)  # for generators that draw from the global random state
        task = prepare_task(model, inputs, spec, settings, folder, broadcast, registry)
        job = _Job(task, amount, record, settings, folder, ranks)
        ticket = None if rewind_to is None else Ticket.find(task.teacher, rewind_to, sparsity or 0.0)
        run, about = job.filters() if sparsity is None else job.weights(ticket)
        if output is not None and ranks.leads:
            run = replace(run, files=_write(run, about, task, Path(output), factory, ticket))
        ranks.wait()
    return run


def _require_one_input(spec: GivenSpec | None, data: object) -> None:
    """Reject networks with several inputs, whose filters cannot be followed.

    Raises:
        UsageError: the specification, or that of the data, has several inputs.
    """
    known = as_specification(spec) or getattr(data, "spec", None)
    if isinstance(known, NetworkSpec):
        raise UsageError(
            f"Filters are removed from networks with one input, but this specification has {', '.join(known.order)}. "
            "Set individual weights to zero instead (sparsity), or prune a submodule that takes one input."
        )


@dataclass(frozen=True)
class _Job:
    """One run of `prune`, once its inputs are ready."""

    task: DistillationTask
    amount: Amount
    options: PruningOptions
    settings: TrainingOptions
    folder: Path | None
    ranks: ProcessGroup

    def filters(self) -> tuple[PruneRun, dict[str, object]]:
        """Prune filters."""
        network = frozen_copy(self.task.teacher).requires_grad_(requires_grad=True)
        groups = prunable(network, self.task, self.options)
        pressing, training = self._split_time()
        pressing = self.task.resolve_settings(pressing, network)
        first: tuple[TrainingPoint, ...] = ()
        about = [asdict(self.options), groups.left]
        beforehand = self.amount.threshold is None and self.options.press == "chosen"
        chosen = self._selected(network, groups) if beforehand else None
        if self.options.sparsity_steps:
            place = self.task.checkpoint_dir(self.folder, "sparsify", pressing, [*about, chosen], self.ranks)
            first = sparsify(network, groups, self.task, pressing, self.options, place, chosen)
        removed = chosen or self._selected(network, groups)
        take_out(network, groups, removed, self.task)
        before = self.task.output_agreement(network)
        training = self.task.resolve_settings(training, network)
        history = self._train(network, training, [*about, removed])
        kept = kept_filters(groups.usable, removed)
        layers = tuple(PrunedLayer(group.name, group.size, kept[group.name]) for group in groups.usable)
        training = replace(training, max_seconds=self.settings.max_seconds)
        run = self._run(network, "filters", layers, before, history, training)
        return replace(run, left=groups.left, sparsity_history=first), {"removed": removed}

    def _selected(self, network: nn.Module, groups: Groups) -> Removed:
        return selected(network, groups, self.task, self.amount, self.options, self.settings)

    def weights(self, ticket: Ticket | None) -> tuple[PruneRun, dict[str, object]]:
        """Set individual weights to zero, or train a lottery ticket of the remaining ones."""
        assert self.amount.sparsity is not None  # noqa: S101  for the type checker
        network = frozen_copy(self.task.teacher).requires_grad_(requires_grad=True)
        if ticket is None:
            prune_weights(network, self.amount.sparsity)
        else:
            network = ticket.rewind(network)
        masks = masks_of(network)
        layers = tuple(
            PrunedLayer(name.rpartition(".")[0], mask.numel(), int(mask.sum())) for name, mask in masks.items()
        )
        before = self.task.output_agreement(network)
        about = [self.amount.sparsity, None if ticket is None else model_digest(network)]
        settings = self.task.resolve_settings(self.settings, network)
        history = self._train(network, settings, about)
        bake(network)
        method = "weights" if ticket is None else "ticket"
        return self._run(network, method, layers, before, history, settings), {}

    def _split_time(self) -> tuple[TrainingOptions, TrainingOptions]:
        """Split a time limit between both trainings in proportion to their steps."""
        limit, pressing = self.settings.max_seconds, self.options.sparsity_steps
        if limit is None:
            return self.settings, self.settings
        share = pressing / (pressing + self.settings.steps)
        pressed = replace(self.settings, max_seconds=limit * share) if share else self.settings
        return pressed, replace(self.settings, max_seconds=limit * (1 - share))

    def _train(self, network: nn.Module, settings: TrainingOptions, about: object) -> tuple[TrainingPoint, ...]:
        place = self.task.checkpoint_dir(self.folder, "finetune", settings, about, self.ranks)
        return train(Student(network), self.task, settings, place)

    def _run(
        self,
        network: nn.Module,
        method: str,
        layers: tuple[PrunedLayer, ...],
        before: tuple[OutputAgreement, ...],
        history: tuple[TrainingPoint, ...],
        training: TrainingOptions,
    ) -> PruneRun:
        task, after = self.task, self.task.output_agreement(network)
        return PruneRun(
            model=network,
            spec=task.spec,
            method=method,
            before=measure_cost(task.teacher, task.spec),
            after=measure_cost(network, task.spec),
            layers=layers,
            left=(),
            agreement_before=class_agreement(before),
            agreement=class_agreement(after),
            output_agreement_before=before,
            output_agreement=after,
            sparsity_history=(),
            history=history,
            options=self.options,
            training=training,
            held_out=len(task.held_out),
        )


def _write(
    run: PruneRun,
    more: Mapping[str, object],
    task: DistillationTask,
    output: Path,
    factory: str | None,
    ticket: Ticket | None,
) -> tuple[Path, ...]:
    about = {
        "kind": "pruned",
        "method": run.method,
        "teacher": {"digest": model_digest(task.teacher), **asdict(run.before)},
        "student": asdict(run.after),
        "input_spec": asdict(run.spec),
        "inputs": {"by": task.about, "samples": len(task.examples) + len(task.held_out)},
        "agreement": {"before": run.agreement_before, "after": run.agreement, "samples": run.held_out},
        "layers": [asdict(layer) for layer in run.layers],
        "left": dict(run.left),
        "settings": {"pruning": asdict(run.options), "training": run.training.as_record()},
        "history": [asdict(point) for point in (*run.sparsity_history, *run.history)],
        "versions": library_versions(),
        **more,
    }
    tickets = () if ticket is None else (ticket.save(output / TICKET_FOLDER),)
    return (save_network(run.model, output, factory=factory, about=about), *tickets)
