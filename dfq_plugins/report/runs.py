"""Computes the additional measurements for the report of a run, and writes the page."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

import torch

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import UsageError
from dfq_plugins.generators.noise import draw_noise
from dfq_plugins.generators.start import known_noise
from dfq_plugins.inputs import count, rows, split
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.network.agreement import output_agreement
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.origin import DataOriginWarning
from dfq_plugins.quality.fidelity import layer_fidelity
from dfq_plugins.quality.run import inspect
from dfq_plugins.quantization.finetune import FinetuneRun
from dfq_plugins.report import pages
from dfq_plugins.report.render import render_report
from dfq_plugins.types import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.quality.inspection import Inspection
    from dfq_plugins.quantization.result import QuantizationRun
    from dfq_plugins.types import Inputs, ProgressEvent, Specification

LARGEST_COMPARISON = 256
"""Maximum number of noise samples to compare the synthetic set with."""

FIDELITY_SAMPLES = 32
"""Number of samples to compare layers on; the mean over all their values converges with fewer."""

HELD_OUT_SHARE, MOST_HELD_OUT = 8, 128
"""An eighth of a set is held out of the calibration, at most this many samples."""


def write_synthesis_report(
    path: Path, model: nn.Module, data: SyntheticDataset, events: Sequence[ProgressEvent], seconds: float
) -> Inspection:
    """Inspect a new set, compared with plain noise for the same network, and write the page.

    Args:
        path: path of the HTML file.
        model: the model that the set was made from.
        data: the set.
        events: progress events of its synthesis.
        seconds: wall time of the synthesis.

    Returns:
        The inspection of the set.
    """
    spec = data.spec
    rng = torch.Generator().manual_seed(data.manifest.seed % 2**63)
    count = max(2, min(len(data), LARGEST_COMPARISON))
    noise = inspect(draw_noise(spec, count, known_noise(spec), rng, torch.device("cpu")), model, spec=spec)
    found = inspect(data, model)
    render_report(pages.synthesis_page(data, noise, found, events, seconds), path)
    return found


def held_out_samples(total: int, wanted: int | None) -> int:
    """Return the number of samples to hold out of the calibration for measuring.

    Args:
        total: number of samples in the set.
        wanted: requested number; None for an eighth of the set, at most 128.

    Raises:
        UsageError: no samples would remain to calibrate on.

    >>> held_out_samples(256, None), held_out_samples(4096, None), held_out_samples(256, 0)
    (32, 128, 0)
    """
    if wanted is None:
        return min(total // HELD_OUT_SHARE, MOST_HELD_OUT)
    if wanted >= total:
        raise UsageError(
            f"Held-out samples are not used for calibration, so fewer than the {total} samples of the set must be held "
            f"out, got {wanted}. Give e.g. {total // HELD_OUT_SHARE}."
        )
    return wanted


def calibration_part(data: SyntheticDataset, held_out: int) -> CalibrationData:
    """Return the calibration data: the set without its last `held_out` samples."""
    return data.inputs(len(data) - held_out) if held_out else data


def held_out_part(data: SyntheticDataset, held_out: int) -> Inputs:
    """Return the inputs to measure on: the last `held_out` samples, or all if none are held out."""
    return rows(data.inputs(), slice(-held_out, None)) if held_out else data.inputs()


def write_quantization_report(
    path: Path,
    model: nn.Module,
    data: SyntheticDataset,
    run: QuantizationRun,
    held_out: int,
    options: object,
    output: Path | None,
) -> tuple[OutputAgreement, ...]:
    """Measure the quantized network on the held-out samples, and write the page.

    Args:
        path: path of the HTML file.
        model: the float network.
        data: the whole set.
        run: the quantized network.
        held_out: number of samples at the end of the set that were held out of the calibration.
        options: the calibrator's options record.
        output: folder of the artifacts, if any.

    Returns:
        How closely each output agrees on the held-out samples, or on those of the calibration if none were held out.
    """
    kept = held_out_part(data, held_out)
    batches = split(kept, 64)
    network = frozen_copy(model)
    # Class maps are those of the run, whose specification may say more than the data set's.
    classes = next((found.num_classes for found in run.output_agreement if found.num_classes), None)
    measured = run.output_agreement
    if held_out:
        measured = output_agreement(network, run.model, batches, count(kept), classes, data.spec)
    fidelity = layer_fidelity(network, run.model, rows(kept, slice(-FIDELITY_SAMPLES, None)), run.coverage, data.spec)
    settings = dataclasses.asdict(options)  # type: ignore[call-overload]  # every options record is a dataclass
    # The origin was checked before the calibration; another model's set has labels that are not this network's.
    own = data.manifest.model_digest == model_digest(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataOriginWarning)
        found = inspect(data if own else data.inputs(), network, spec=data.spec, allow_other_network=True)
    if isinstance(run, FinetuneRun):
        held_out = run.held_out
    page = pages.quantization_page(data, found, run, fidelity, (held_out, measured), settings, output)
    render_report(page, path)
    return measured


def write_inspection_report(
    path: Path, name: str, data: SyntheticDataset | Sequence[Inputs], spec: Specification, found: Inspection
) -> None:
    """Write the page of an inspection.

    Args:
        path: path of the HTML file.
        name: name of the set.
        data: a synthetic set, or batches of inputs.
        spec: input specification.
        found: inspection of the set.
    """
    synthetic = isinstance(data, SyntheticDataset)
    first = next(iter(data.loader(pages.PICTURES))) if isinstance(data, SyntheticDataset) else Batch(data[0])
    render_report(pages.inspection_page(name, found, first, spec, synthetic=synthetic), path)
