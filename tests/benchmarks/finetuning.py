"""Accuracy after fine-tuning, data-free beside real data, over seeds.

    python tests/benchmarks/finetuning.py --work FOLDER [--minutes 20] [--rows bns gaussian] [--columns brevitas-w4a4]

Synthetic sets and checkpoints are kept in FOLDER, so that an interrupted cell goes on; cells that the result file
holds already are not measured again. `--minutes` bounds the training of one cell, `-T` sets anything else about it: a
column with settings of its own goes by another name with `--label`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from calibration import SAMPLES, coverage_rows
from common import accuracy, is_complete, load_case, read_result, score_of, write_result

import dfq_plugins
from dfq_plugins.host.options import parse_options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.quantization.finetune import FinetuneRun

NETWORK = "resnet20_cifar10"
MIXED = ("bns", "bns+inception", "inception", "gaussian")
"""Generators of which the row `mixed` takes the first quarter each."""

ROWS = ("bns", "bns 4096", "real 1024", "real 4096", "gaussian", "inception", "bns+inception", "mixed")
COLUMNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "torch-ao-w8a8": ("torch-ao", "w8a8", {"engine": "onednn"}),
    "pytorch-quantization-w8a8": ("pytorch-quantization", "w8a8", {}),
    "modelopt-w8a8": ("modelopt", "w8a8", {}),
    "brevitas-w8a8": ("brevitas", "w8a8", {}),
    "brevitas-w4a8": ("brevitas", "w4a8", {}),
    "pytorch-quantization-w4a4": ("pytorch-quantization", "w4a4", {}),
    "modelopt-w4a4": ("modelopt", "w4a4", {}),
    "brevitas-w4a4": ("brevitas", "w4a4", {}),
    "brevitas-w3a3": ("brevitas", "w3a3", {}),
    "pytorch-quantization-w6a6": ("pytorch-quantization", "w6a6", {}),
    "brevitas-w6a6": ("brevitas", "w6a6", {}),
    "pytorch-quantization-w4a4-image4": ("pytorch-quantization", "w4a4", {"input_bits": 4}),
    "brevitas-w4a4-image4": ("brevitas", "w4a4", {"input_bits": 4, "addition_bits": 4}),
    "brevitas-w4a4-addition4": ("brevitas", "w4a4", {"addition_bits": 4}),
    "brevitas-w3a3-addition3": ("brevitas", "w3a3", {"addition_bits": 3}),
    "brevitas-binary": ("brevitas", "binary", {}),
}

NARROWER = ("-image4", "-addition4", "-addition3")
"""How columns end that are measured on request alone, to show what a width costs."""


def data_of(
    row: str,
    spec: dfq_plugins.InputSpec,
    network: nn.Module,
    real: Tensor,
    seed: int,
    work: Path,
    name: str = NETWORK,
) -> Any:
    """Return the data of one row and seed; a synthetic set is made where the folder holds no complete one.

    Args:
        row: `real` or a generator, and how many samples where it is not the usual number; or `mixed`.
        spec: what an input looks like.
        network: what the inputs are made from.
        real: all real inputs.
        seed: of the set, or of the choice of real inputs.
        work: where sets are kept.
        name: of the network.
    """
    kind, _, count = row.partition(" ")
    if kind == "real":
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        return real[order[: int(count)]]
    if kind == "mixed":
        parts = (data_of(part, spec, network, real, seed, work, name) for part in MIXED)
        return torch.cat([part.inputs(SAMPLES[name] // len(MIXED)) for part in parts])
    folder = work / f"{name}-{row}-{seed}"
    if is_complete(folder):
        return dfq_plugins.SyntheticDataset.open(folder)
    samples = int(count or SAMPLES[name])
    return dfq_plugins.synthesize(network, spec, generator=kind, num_samples=samples, seed=seed, output=folder)


def record_of(run: FinetuneRun, figure: float, before: float | None, seconds: float) -> dict[str, Any]:
    """Return what the result file keeps of one cell."""
    return {
        "accuracy": figure,
        "before": before,
        "agreement": run.agreement,
        "agreement_before": run.agreement_before,
        "seconds": seconds,
        "steps": run.history[-1].step,
        "chosen_within_one_error": True,
    }


def measure(arguments: argparse.Namespace, row: str, column: str, seed: int, case: tuple[Any, ...]) -> None:
    """Fill one cell, and the accuracy before the training beside it where that is asked for."""
    settings, network, real, *test = case
    calibrator, recipe, options = COLUMNS[column]
    options = options | dict(pair.split("=", 1) for pair in arguments.option)
    data = data_of(row, settings.spec, network, real, seed, arguments.work, arguments.network)
    training = {**dict(pair.split("=", 1) for pair in arguments.training), "seed": seed}
    if arguments.minutes:
        training["max_seconds"] = 60 * arguments.minutes
    label = arguments.label or column
    work = arguments.work / "training" / f"{label}-{row}-{seed}".replace(" ", "-")
    given = {"calibrator": calibrator, "recipe": recipe, "options": options, "spec": settings.spec}
    before = None
    if arguments.before:
        before = accuracy(dfq_plugins.quantize(network, data, **given), *test, score=score_of(arguments.network))
    began = time.monotonic()
    if arguments.generator:  # beside the row's data, which calibrate and select as well
        given["generator"] = arguments.generator
        given["generator_options"] = dict(pair.split("=", 1) for pair in arguments.generator_option)
    run = dfq_plugins.finetune(network, data, training=training, work=work, listeners=[say], **given)
    seconds = time.monotonic() - began
    figure = accuracy(run.model, *test, score=score_of(arguments.network))
    record = so_far(arguments.result)  # read again: another process may have measured other cells meanwhile
    record["cells"].setdefault(row, {}).setdefault(label, {})[str(seed)] = record_of(run, figure, before, seconds)
    record["training"][label] = asdict(run.training)
    record["coverage"][label] = coverage_rows(run.coverage)
    print(f"{seed} {row:14s} {label:28s} {figure:6.2f} (before {before}) in {seconds:.0f} s", flush=True)
    write_result(arguments.result, record)


def say(event: Any) -> None:
    """Print how far the training is, now and then."""
    if event.stage == "finetune" and event.completed % 100 == 0:
        print(f"  {event.completed} of {event.total} {dict(event.metrics)}", flush=True)


def so_far(name: str) -> dict[str, Any]:
    """Return what the result file holds."""
    return read_result(name) or {"cells": {}, "training": {}, "coverage": {}}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default=NETWORK, choices=list(SAMPLES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=["bns", "real 1024", "real 4096", "gaussian"], choices=ROWS)
    columns = [column for column in COLUMNS if not column.endswith(NARROWER)]
    parser.add_argument("--columns", nargs="+", default=columns, choices=list(COLUMNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="most minutes of training in one cell")
    parser.add_argument("-T", "--training", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-O", "--option", action="append", default=[], metavar="KEY=VALUE", help="of the calibrator")
    parser.add_argument("--generator", help="one that learns beside the student; name the column with --label")
    parser.add_argument("-G", "--generator-option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--label", help="name of the column in the result, where -T makes it another one")
    parser.add_argument("--before", action="store_true", help="measure the calibrated model as well")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--result", help="name of the result file; not given: that of the network")
    arguments = parser.parse_args()
    parse_options(dfq_plugins.TrainingOptions, dict(pair.split("=", 1) for pair in arguments.training))
    torch.set_num_threads(arguments.threads)
    settings, network, real, inputs, labels = load_case(arguments.network)
    arguments.result = arguments.result or f"finetuning-{arguments.network}"
    test = inputs[: arguments.test_images], labels[: arguments.test_images]
    figure = accuracy(network, *test, score=score_of(arguments.network))
    about = {"samples": SAMPLES[arguments.network], "test_samples": len(test[1]), "float": figure}
    write_result(arguments.result, {**so_far(arguments.result), **about})
    for seed in arguments.seeds:
        for column in arguments.columns:
            for row in arguments.rows:
                cells = so_far(arguments.result)["cells"].get(row, {}).get(arguments.label or column, {})
                if str(seed) not in cells:
                    measure(arguments, row, column, seed, (settings, network, real, *test))


if __name__ == "__main__":
    main()
