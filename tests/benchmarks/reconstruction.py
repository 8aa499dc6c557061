"""Accuracy after reconstruction, data-free beside real data, in each framework that can reconstruct.

    python tests/benchmarks/reconstruction.py resnet20_cifar10 --work FOLDER

Synthetic sets are kept in FOLDER and used again; cells that the result file holds already are not measured again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import CASES, accuracy, is_complete, load_case, read_result, score_of, write_result

import dfq_plugins

if TYPE_CHECKING:
    from common import Case
    from torch import Tensor, nn

CALIBRATORS = ("brevitas", "pytorch-quantization")
RECIPES = ("w4a4", "w3a3")
ROWS = ("real data", "bns")


def data_of(row: str, case: Case, network: nn.Module, real: Tensor, seed: int, samples: int, work: Path) -> Any:
    """Return the data of a row; a synthetic set is made where the folder does not hold it."""
    if row == "real data":
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        return real[order[:samples]]
    folder = work / f"{case.network}-{row}-{samples}-{seed}"
    if is_complete(folder):
        return dfq_plugins.SyntheticDataset.open(folder)
    return dfq_plugins.synthesize(network, case.spec, generator=row, num_samples=samples, seed=seed, output=folder)


def measured(network: nn.Module, case: Case, data: Any, calibrator: str, recipe: str, seed: int, test: Any) -> Any:
    """Return the accuracy and the blocks of one cell."""
    began = time.monotonic()
    run = dfq_plugins.run_quantization(
        network, data, calibrator=calibrator, recipe=recipe, spec=case.spec, reconstruct={"seed": seed}
    )
    seconds = time.monotonic() - began
    return {
        "accuracy": accuracy(run.model, *test, score=score_of(case.network)),
        "seconds": seconds,
        "megabytes": max(block.megabytes for block in run.reconstruction),
        "errors": {block.name: [block.error_before, block.error] for block in run.reconstruction},
    }


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(CASES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--test-samples", type=int, help="the first ones of the test set; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrators", nargs="+", default=CALIBRATORS)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--rows", nargs="+", default=ROWS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case, network, real, inputs, labels = load_case(arguments.network)
    test = inputs[: arguments.test_samples], labels[: arguments.test_samples]
    name = f"reconstruction-{arguments.network}"
    cells = [
        (seed, row, calibrator, recipe)
        for seed in arguments.seeds
        for row in arguments.rows
        for calibrator in arguments.calibrators
        for recipe in arguments.recipes
    ]
    for seed, row, calibrator, recipe in cells:
        record = read_result(name) or {"cells": {}, "samples": arguments.samples, "test_samples": len(test[1])}
        key = f"{row}, {calibrator} {recipe}, {seed}"
        if key in record["cells"]:
            continue
        data = data_of(row, case, network, real, seed, arguments.samples, arguments.work)
        record["cells"][key] = measured(network, case, data, calibrator, recipe, seed, test)
        print(f"{key:45s} {record['cells'][key]['accuracy']:6.2f}", flush=True)
        write_result(name, record)


if __name__ == "__main__":
    main()
