"""Accuracy after calibration, data-free beside real data: every generator through every framework, over seeds.

    python tests/benchmarks/calibration.py resnet20_cifar10 --work FOLDER

Synthetic sets are kept in FOLDER and used again; cells that the result file holds already are not measured again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import Case, accuracy, is_complete, load_case, read_result, score_of, throughout, write_result

import dfq_plugins
from dfq_plugins.host.registry import get_registry
from dfq_plugins.quantization.formats import format_in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

Column = tuple[str, str, dict[str, Any]]

W8A8_EVERYWHERE: dict[str, Column] = {
    "torch-ao (x86) w8a8": ("torch-ao", "w8a8", {"engine": "x86"}),
    "torch-ao (onednn) w8a8": ("torch-ao", "w8a8", {"engine": "onednn"}),
    "torchao (x86) w8a8": ("torchao", "w8a8", {}),
    "pytorch-quantization w8a8": ("pytorch-quantization", "w8a8", {}),
    "brevitas w8a8": ("brevitas", "w8a8", {}),
    "modelopt w8a8": ("modelopt", "w8a8", {}),
    "onnxruntime w8a8": ("onnxruntime", "w8a8", {}),
}
NARROWER_EVERYWHERE: dict[str, Column] = {
    "pytorch-quantization w4a4": ("pytorch-quantization", "w4a4", {}),
    "modelopt w4a4": ("modelopt", "w4a4", {}),
    "brevitas w4a8": ("brevitas", "w4a8", {}),
    "brevitas w4a4": ("brevitas", "w4a4", {}),
}
ALL_OF_THE_SHIFT = {"correction_strength": 1.0}
COLUMNS: dict[str, dict[str, Column]] = {
    "resnet20_cifar10": {
        **W8A8_EVERYWHERE,
        "pytorch-quantization w4a4": ("pytorch-quantization", "w4a4", {}),
        "modelopt w4a4": ("modelopt", "w4a4", {}),
        "pytorch-quantization w4a4 throughout": (
            "pytorch-quantization",
            "w4a4",
            throughout("pytorch-quantization", "w4a4"),
        ),
        "brevitas w4a8": ("brevitas", "w4a8", {}),
        "brevitas w4a4": ("brevitas", "w4a4", {}),
        "brevitas w4a4, strength 1": ("brevitas", "w4a4", ALL_OF_THE_SHIFT),
        "brevitas w4a4 throughout": ("brevitas", "w4a4", throughout("brevitas", "w4a4")),
        "brevitas w4a4 throughout, strength 1": (
            "brevitas",
            "w4a4",
            ALL_OF_THE_SHIFT | throughout("brevitas", "w4a4"),
        ),
    },
    "mobilenetv1_075_imagenet": W8A8_EVERYWHERE,
    "dscnn_kws_mlperftiny": W8A8_EVERYWHERE,
    "crepe_tiny": W8A8_EVERYWHERE | NARROWER_EVERYWHERE,
    "ppocr_cls": W8A8_EVERYWHERE | NARROWER_EVERYWHERE,
}
GENERATORS = {
    "resnet20_cifar10": ("gaussian", "inception", "bns", "bns+inception"),
    "mobilenetv1_075_imagenet": ("gaussian", "bns"),
    "dscnn_kws_mlperftiny": ("gaussian", "bns"),
    "crepe_tiny": ("gaussian", "bns"),
    "ppocr_cls": ("gaussian", "bns"),
}
SAMPLES = {
    "resnet20_cifar10": 1024,
    "mobilenetv1_075_imagenet": 64,
    "dscnn_kws_mlperftiny": 1024,
    "crepe_tiny": 64,
    "ppocr_cls": 64,
}


def rows_of(
    case: Case, network: nn.Module, real: Tensor, seed: int, work: Path
) -> Iterator[tuple[str, Tensor | dfq_plugins.SyntheticDataset]]:
    """Yield the data of each row for one seed; synthetic sets are made where the folder does not hold them."""
    if case.calibration_split != case.test_split:
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        yield "real data", real[order[: case.calibration_samples]]
    elif seed == 0:  # a fixed part of the set calibrates, so that there is nothing to draw
        yield "real data", real[: case.calibration_samples]
    for generator in GENERATORS[case.network]:
        folder = work / f"{case.network}-{generator}-{seed}"
        if is_complete(folder):
            yield generator, dfq_plugins.SyntheticDataset.open(folder)
            continue
        samples = SAMPLES[case.network]
        yield (
            generator,
            dfq_plugins.synthesize(
                network, case.spec, generator=generator, num_samples=samples, seed=seed, output=folder
            ),
        )


def describe(run: Any) -> dict[str, Any]:
    """Return which tensors are quantized, for the record."""
    return {
        "quantized": coverage_rows(run.coverage),
        "unquantized": [list(pair) for pair in run.coverage.unquantized],
    }


def coverage_rows(coverage: Any) -> list[list[Any]]:
    """Return name, weight format and input format, in words, of each layer and activation."""
    layers = [
        [name, *(_words(coverage.format_of(name, role)) for role in ("weight", "input"))] for name in coverage.layers
    ]
    others = [[row.name, None, _words(row.format)] for row in coverage.quantized if row.role == "activation"]
    return layers + others


def _words(form: Any) -> str | None:
    return None if form is None else format_in_words(form)


def measure_cells(
    columns: dict[str, Column], case: Case, network: nn.Module, data: Any, row: str, seed: int, test: Any
) -> None:
    """Fill the cells of one row and seed that the result file does not hold yet."""
    for column, (calibrator, recipe, options) in columns.items():
        if str(seed) in so_far(case.network)["cells"].get(row, {}).get(column, {}):
            continue
        began = time.monotonic()
        run = dfq_plugins.run_quantization(
            network, data, calibrator=calibrator, recipe=recipe, options=options, spec=case.spec
        )
        calibrated = time.monotonic()
        figure = accuracy(run.model, *test, score=score_of(case.network))
        record = so_far(case.network)  # read again: another process may have measured other seeds meanwhile
        record["cells"].setdefault(row, {}).setdefault(column, {})[str(seed)] = figure
        record["coverage"][column] = describe(run)
        record["options"][column] = str(get_registry().options("calibrator", calibrator, options))
        print(
            f"{seed} {row:15s} {column:28s} {figure:6.2f}  calibrated in {calibrated - began:.0f} s, "
            f"measured in {time.monotonic() - calibrated:.0f} s",
            flush=True,
        )
        write_result(f"calibration-{case.network}", record)


def so_far(network: str) -> dict[str, Any]:
    """Return what the result file holds."""
    return read_result(f"calibration-{network}") or {"cells": {}, "coverage": {}, "options": {}}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(COLUMNS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--columns", nargs="+", help="these alone")
    parser.add_argument("--rows", nargs="+", help="these alone")
    parser.add_argument(
        "--calibrators",
        nargs="+",
        default=["torch-ao", "torchao", "pytorch-quantization", "modelopt", "brevitas", "onnxruntime"],
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = arguments.network
    case, network, real, inputs, labels = load_case(name)
    about = {"samples": SAMPLES[name], "real_samples": case.calibration_samples, "test_samples": len(labels)}
    figure = accuracy(network, inputs, labels, score=score_of(name))
    write_result(f"calibration-{name}", {**so_far(name), **about, "float": figure})
    columns = {
        column: entry
        for column, entry in COLUMNS[name].items()
        if entry[0] in arguments.calibrators and column in (arguments.columns or COLUMNS[name])
    }
    for seed in arguments.seeds:
        for row, data in rows_of(case, network, real, seed, arguments.work):
            if row in (arguments.rows or [row]):
                measure_cells(columns, case, network, data, row, seed, (inputs, labels))


if __name__ == "__main__":
    main()
