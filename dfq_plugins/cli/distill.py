"""`dfq distill`: train a smaller network to reproduce a trained network's outputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    FILE,
    FOLDER,
    SpecArguments,
    TrainingArguments,
    json_option,
    load_model,
    report_option,
    spec_options,
    training_options,
)
from dfq_plugins.cli.compression import GENERATOR_HELP, StudentArguments, opened, print_costs, student_options
from dfq_plugins.cli.output import announce, note_unknown_classes, print_json
from dfq_plugins.cli.results import print_agreement
from dfq_plugins.distillation.options import DistillOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dfq_plugins.distillation.run import DistillRun
    from dfq_plugins.pruning.ticket import Ticket


@click.command()
@click.option("--teacher", "teacher_reference", metavar="MODEL", required=True, help="The trained network.")
@click.option("--teacher-weights", type=FILE, help="State dict of the teacher: .safetensors, .pth or .pt.")
@click.option("--student", "student_reference", metavar="MODEL", required=True, help="The network to train.")
@click.option("--student-weights", type=FILE, help="Initial weights of the student; default: the factory's.")
@click.option("--data", type=click.Path(path_type=Path), help="A synthetic set, a folder of images, or an .npz file.")
@click.option("--ticket", type=FOLDER, help="Folder of a lottery ticket of the student to train.")
@click.option("--inherit", is_flag=True, help="Initialize the student from the teacher's matching layers.")
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads; default: torch's choice.")
@training_options(lambda: DistillOptions, GENERATOR_HELP)
@student_options
@spec_options
@report_option
@json_option
def distill(
    *,
    teacher_reference: str,
    teacher_weights: Path | None,
    student_reference: str,
    student_weights: Path | None,
    data: Path | None,
    ticket: Path | None,
    inherit: bool,
    threads: int | None,
    training: TrainingArguments,
    student: StudentArguments,
    spec: SpecArguments,
    report: Path | None,
    as_json: bool,
) -> None:
    """Train the network --student to reproduce the outputs of --teacher, on synthetic or real inputs.

    Each MODEL is torchvision:NAME, package.module:factory, file.py:factory, or saved:FOLDER. With --output, the
    student is written as safetensors and JSON. With --work, repeating the command resumes an interrupted training.
    Under torchrun, every process takes a part of each batch.
    """
    student.check(training, DistillOptions)
    with progress.reporting() as listener:
        big = load_model(teacher_reference, teacher_weights, threads)
        small = _student(student_reference, student_weights, training.settings)
        inputs, known = opened(data, big, spec)
        run = dfq_plugins.distill(
            big,
            small,
            inputs,
            spec=known,
            training=training.settings,
            generator=training.generator,
            generator_options=training.generator_options,
            num_samples=student.samples,
            ticket=None if ticket is None else _ticket(ticket),
            inherit=inherit,
            output=student.output,
            factory=student_reference,
            work=training.work,
            allow_other_network=student.allow_other_network,
            listeners=[listener],
        )
        if report is not None:
            from dfq_plugins.report import compression  # noqa: PLC0415  imports matplotlib

            compression.write_distilling_report(report, run)
    if run.spec.num_classes is None:
        note_unknown_classes()
    if as_json:
        print_json(as_dict(run) | {"report": report})
        return
    print_distill_run(run)
    announce(report)


def _ticket(folder: Path) -> Ticket:
    from dfq_plugins.pruning.ticket import Ticket  # noqa: PLC0415  imports torch

    return Ticket.load(folder)


def _student(reference: str, weights: Path | None, training: Mapping[str, Any]) -> nn.Module:
    """Build the student, with initial weights drawn from the training seed."""
    import torch

    from dfq_plugins.model_state import preserve_global_state  # noqa: PLC0415  imports torch

    with preserve_global_state():
        torch.manual_seed(int(training.get("seed", 0)))
        return load_model(reference, weights, None)


def print_distill_run(run: DistillRun) -> None:
    """Print the result of a distillation."""
    print_costs(("teacher", run.teacher_cost), ("student", run.student_cost))
    if run.inherited:
        click.echo(f"Initialized {len(run.inherited)} layers with the teacher's weights.")
    last = run.history[-1]
    click.echo(f"Trained for {last.step} steps, {last.seconds:.0f} s.")
    print_agreement(
        run.output_agreement_before, f"Agreement with the teacher on {run.held_out} held-out samples before"
    )
    print_agreement(run.output_agreement, f"Agreement with the teacher on {run.held_out} held-out samples after")
    for file in run.files:
        click.echo(f"Wrote {file}")


def as_dict(run: DistillRun) -> dict[str, Any]:
    """Return the run for `--json`."""
    return {
        "teacher": asdict(run.teacher_cost),
        "student": asdict(run.student_cost),
        "inherited": run.inherited,
        "agreement_before": run.agreement_before,
        "agreement": run.agreement,
        "output_agreement": [asdict(output) for output in run.output_agreement],
        "held_out": run.held_out,
        "history": [asdict(point) for point in run.history],
        "training": asdict(run.training),
        "files": run.files,
    }
