"""The pages of `dfq distill --report` and `dfq prune --report`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from dfq_plugins.report.content import Section, Table
from dfq_plugins.report.render import Report, render_report
from dfq_plugins.report.sections import input_facts, settings_section
from dfq_plugins.report.training import STATE_KEPT, training_curves

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.run import DistillRun
    from dfq_plugins.network.cost import Cost
    from dfq_plugins.pruning.run import PruneRun
    from dfq_plugins.report.content import Block

DISTILLING = (
    "A smaller network, the student, was trained to answer as a larger one, the teacher, does. It never saw a label: "
    "what it learned are the teacher's own answers to the inputs."
)
PRUNING = (
    "Parts of a trained network that matter least were taken out, and what is left was trained to answer as the whole "
    "network does. No label was needed: the network's own answers are what it learned."
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
        "Student": {"layers with the teacher's first weights": ", ".join(run.inherited) or "none"},
        "Training": asdict(run.training),
    }
    sections = (
        _cost_section(("teacher", run.teacher_cost), ("student", run.student_cost)),
        _training_section(run.history, run.agreement_before, run.agreement, run.held_out),
        settings_section(settings),
    )
    figures = _figures(run.teacher_cost, run.student_cost, run.agreement, run.held_out)
    return Report("A smaller network", (DISTILLING,), figures, sections, "Made by dfq distill.")


def pruning_page(run: PruneRun) -> Report:
    """Return the page of a pruning."""
    settings = {
        "Network input": input_facts(run.spec),
        "Pruning": asdict(run.options),
        "Training": asdict(run.training),
    }
    sections = (
        _cost_section(("before", run.before), ("after", run.after)),
        _layer_section(run),
        _training_section(run.history, run.agreement_before, run.agreement, run.held_out),
        settings_section(settings),
    )
    figures = _figures(run.before, run.after, run.agreement, run.held_out)
    return Report("A pruned network", (PRUNING,), figures, sections, "Made by dfq prune.")


def _figures(before: Cost, after: Cost, agreement: float, held_out: int) -> tuple[tuple[str, str], ...]:
    figures = [
        (f"{after.macs / before.macs:.0%}", "of the MACs"),
        (f"{after.nonzero / before.nonzero:.0%}", "of the weights"),
    ]
    if not math.isnan(agreement):
        figures.insert(0, (f"{agreement:.1%}", f"same class as the whole network, on {held_out} held-out samples"))
    return tuple(figures)


def _cost_section(before: tuple[str, Cost], after: tuple[str, Cost]) -> Section:
    text = "MACs are those of one input, in convolutions and linear layers."
    rows = tuple(
        (name, float(cost.parameters), float(cost.nonzero), float(cost.macs)) for name, cost in (before, after)
    )
    table = Table(("Network", "Parameters", "Not zero", "MACs"), rows, decimals=0)
    return Section("What it costs", (text,), (table,))


def _layer_section(run: PruneRun) -> Section:
    unit = "filters" if run.method == "filters" else "weights"
    text = (
        "Layers that are added up can only lose the same filters together; they stand under the name of the first one."
        if run.method == "filters"
        else "The smallest weights of all layers together were set to zero."
    )
    rows = tuple(
        (layer.name, float(layer.before), float(layer.after), 100 * layer.after / layer.before) for layer in run.layers
    )
    notes = tuple(f"{name} stays whole: {reason}" for name, reason in run.left)
    columns = ("Layer", f"{unit.capitalize()} before", "After", "Left, %")
    return Section("What is left of each layer", (text,), (Table(columns, rows, notes=notes, decimals=0),))


def _training_section(history: tuple[TrainingPoint, ...], before: float, after: float, held_out: int) -> Section:
    blocks: list[Block] = []
    if not math.isnan(after):
        rows = (("before the training", 100 * before), ("after", 100 * after))
        caption = f"Measured on {held_out} samples that took no part in the training"
        blocks.append(Table(("State", "Same class, %"), rows, caption=caption))
    return Section("How the training went", (STATE_KEPT,), (*blocks, training_curves(history)))
