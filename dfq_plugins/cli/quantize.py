"""`dfq quantize`: calibrate a model with a synthetic set inside one framework."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    ModelArguments,
    QuantizationArguments,
    ReconstructionArguments,
    TrainingArguments,
    json_option,
    model_options,
    quantization_options,
    reconstruction_options,
    report_option,
    training_options,
    with_classes,
)
from dfq_plugins.cli.finetune import GENERATOR_HELP, finetune_and_print
from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.output import announce, print_json
from dfq_plugins.cli.results import note_classes, print_agreement, print_run, require_artifacts, run_as_dict
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.errors import UsageError
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.quantization.result import QuantizationRun
    from dfq_plugins.reconstruction.options import ReconstructionOptions
    from dfq_plugins.types import ProgressEvent, Specification


@click.command()
@model_options
@quantization_options
@reconstruction_options
@report_option
@click.option(
    "--hold-out",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --report: hold the last N samples out of calibration and measure agreement on them; default: an eighth "
    "of the set, at most 128.",
)
@click.option("--finetune", is_flag=True, help="Also train the quantized model, like `dfq finetune`.")
@training_options(lambda: TrainingOptions, GENERATOR_HELP)
@json_option
def quantize(
    *,
    model: ModelArguments,
    what: QuantizationArguments,
    reconstruction: ReconstructionArguments,
    training: TrainingArguments,
    report: Path | None,
    hold_out: int | None,
    finetune: bool,
    as_json: bool,
) -> None:
    """Quantize MODEL on the synthetic set in the folder DATA, using the framework's own calibration.

    For a calibrator that takes it, such as onnxruntime, MODEL may also be an ONNX file.

    With --output, the framework's artifacts are written there; each one is run and compared with the model first.
    """
    if finetune:
        if hold_out is not None:
            raise UsageError(
                "--hold-out does not apply to fine-tuning. Give the share to hold out as -T validation_fraction=0.1."
            )
        finetune_and_print(model, what, reconstruction, training, report, as_json=as_json)
        return
    settings = reconstruction.settings
    if named := [name for name in training.named if not (settings and name == "--work")]:
        raise UsageError(f"{', '.join(named)} only applies to fine-tuning: add --finetune, or use dfq finetune.")
    what.check()
    kept = "" if training.work is None else f" Finished blocks are in {training.work}."
    set_resume_hint(f"No unfinished artifact is left behind: run the same command again.{kept}")
    if hold_out is not None and report is None:
        raise UsageError("--hold-out only applies to the report: add --report, or remove --hold-out.")
    measured = None
    with progress.reporting() as listener:
        dataset = dfq_plugins.SyntheticDataset.open(what.data)
        network = model.load_or_read()
        quantized = partial(_run, network, what, listener, settings, training.work)
        if report is None:
            run = quantized(dataset, with_classes(dataset.spec, what.num_classes))
        else:
            run, measured = _run_with_report(quantized, network, dataset, what, report, hold_out)
    note_classes(run, dataset.spec, what.num_classes)
    if as_json:
        from dfq_plugins.network.agreement import class_agreement  # noqa: PLC0415  imports torch

        held = None if measured is None else {"samples": measured[0].samples, "agreement": class_agreement(measured)}
        print_json(run_as_dict(run) | {"report": report, "held_out": held})
        require_artifacts(run.rejected)
        return
    print_run(run)
    if measured is not None:
        print_agreement(measured, f"Agreement on {measured[0].samples} held-out samples")
    announce(report)
    require_artifacts(run.rejected)


def _run(
    network: nn.Module,
    what: QuantizationArguments,
    listener: Callable[[ProgressEvent], None],
    reconstruct: ReconstructionOptions | bool,
    work: Path | None,
    data: CalibrationData,
    spec: Specification | None,
) -> QuantizationRun:
    return dfq_plugins.run_quantization(
        network,
        data,
        calibrator=what.calibrator,
        recipe=what.recipe,
        spec=spec,
        options=what.options,
        reconstruct=reconstruct,
        output=what.output,
        allow_other_network=what.allow_other_network,
        work=work,
        listeners=[listener],
    )


def _run_with_report(
    quantized: Callable[[CalibrationData, Specification | None], QuantizationRun],
    network: nn.Module,
    dataset: SyntheticDataset,
    what: QuantizationArguments,
    report: Path,
    hold_out: int | None,
) -> tuple[QuantizationRun, tuple[OutputAgreement, ...] | None]:
    """Quantize on all samples except the held-out ones, and write the report; return what was measured on those."""
    from dfq_plugins.model_state import frozen_copy  # noqa: PLC0415  imports torch
    from dfq_plugins.network.origin import check_origin  # noqa: PLC0415  imports torch
    from dfq_plugins.report import runs  # noqa: PLC0415  imports matplotlib

    # A part of the set is a tensor, which does not say what it was made from.
    check_origin(dataset, frozen_copy(network), allow_other_network=what.allow_other_network)
    held_out = runs.held_out_samples(len(dataset), hold_out)
    spec = with_classes(dataset.spec, what.num_classes)
    run = quantized(runs.calibration_part(dataset, held_out), spec)
    options = get_registry().options("calibrator", what.calibrator, what.options)
    found = runs.write_quantization_report(report, network, dataset, run, held_out, options, what.output)
    return run, found if held_out else None
