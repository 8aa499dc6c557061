"""The pages of `dfq distill --report` and `dfq prune --report`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from dfq_plugins.network.agreement import class_output
from dfq_plugins.report.content import Section, Table
from dfq_plugins.report.render import Report, render_report
from dfq_plugins.report.sections import input_facts, settings_section
from dfq_plugins.report.training import STATE_KEPT, few, training_curves

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.run import DistillRun
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.network.cost import Cost
    from dfq_plugins.pruning.run import PruneRun
    from dfq_plugins.report.content import Block

DISTILLING = (
    "A smaller network, the student, was trained to reproduce the outputs of a larger network, the teacher. It never "
    "saw a label: it learned only from the teacher's outputs."
)
PRUNING = (
    "The least important parts of a trained network were removed, and the remaining network was trained to reproduce "
    "the original outputs. No labels were needed: it learned from the outputs of the original network."
)


def write_distilling_report(path: Path, run: DistillRun) -> None:
    """Write the page of a distillation."""
    render_report(distilling_page(run), path)


def write_pruning_report(path: Path, run: PruneRun) -> None:
    """Write the page of a pruning."""
    render_report(pruning_page(run), path)


def distilling_page(run: DistillRun) -> Report:
    """Return the page of a distillation."""
    settings: dict[str, dict[str, object]] = {
        "Network input": input_facts(run.spec),
        "Student": {"layers initialized from the teacher": ", ".join(run.inherited) or "none"},
        "Training": run.training.as_record(),
    }
    sections = (
        _cost_section(("teacher", run.teacher_cost), ("student", run.student_cost)),
        _training_section(run.history, run.agreement_before, run.agreement, run.held_out),
        settings_section(settings),
    )
    figures = _figures(run.teacher_cost, run.student_cost, run.output_agreement, run.held_out)
    return Report("A smaller network", (DISTILLING,), figures, sections, "Made by dfq distill.")


def pruning_page(run: PruneRun) -> Report:
    """Return the page of a pruning."""
    settings = {
        "Network input": input_facts(run.spec),
        "Pruning": asdict(run.options),
        "Training": run.training.as_record(),
    }
    sections = (
        _cost_section(("before", run.before), ("after", run.after)),
        _layer_section(run),
        _training_section(run.history, run.agreement_before, run.agreement, run.held_out),
        settings_section(settings),
    )
    figures = _figures(run.before, run.after, run.output_agreement, run.held_out)
    return Report("A pruned network", (PRUNING,), figures, sections, "Made by dfq prune.")


def _figures(
    before: Cost, after: Cost, agreement: Sequence[OutputAgreement], held_out: int
) -> tuple[tuple[str, str], ...]:
    figures = [
        (f"{after.macs / before.macs:.0%}", "of the MACs"),
        (f"{after.nonzero / before.nonzero:.0%}", "of the weights"),
    ]
    classes = class_output(agreement)
    if classes is not None:
        figure, note = classes.headline
        figures.insert(0, (figure, f"same class as the original network, on {held_out} held-out samples{note}"))
    return tuple(figures)


def _cost_section(before: tuple[str, Cost], after: tuple[str, Cost]) -> Section:
    text = "MACs are counted for one input, in convolutions and linear layers."
    rows = tuple(
        (name, float(cost.parameters), float(cost.nonzero), float(cost.macs)) for name, cost in (before, after)
    )
    table = Table(("Network", "Parameters", "Nonzero", "MACs"), rows, decimals=0)
    return Section("Size and cost", (text,), (table,))


def _layer_section(run: PruneRun) -> Section:
    unit = "filters" if run.method == "filters" else "weights"
    text = (
        "Layers whose outputs are added must lose the same filters; such a group is listed under its first layer."
        if run.method == "filters"
        else "The smallest weights of all layers together were set to zero."
    )
    rows = tuple(
        (layer.name, float(layer.before), float(layer.after), 100 * layer.after / layer.before) for layer in run.layers
    )
    notes = tuple(f"{name} was not pruned: {reason}" for name, reason in run.left)
    columns = ("Layer", f"{unit.capitalize()} before", "After", "Kept, %")
    return Section("Pruning by layer", (text,), (Table(columns, rows, notes=notes, decimals=0),))


def _training_section(history: tuple[TrainingPoint, ...], before: float, after: float, held_out: int) -> Section:
    blocks: list[Block] = []
    if not math.isnan(after):
        rows = (("before training", 100 * before), ("after training", 100 * after))
        caption = f"Measured on {held_out} samples that were not used for training{few(held_out)}"
        blocks.append(Table(("State", "Same class, %"), rows, caption=caption))
    return Section("Training progress", (STATE_KEPT,), (*blocks, training_curves(history)))
