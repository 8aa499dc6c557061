"""Accuracy of students that were distilled from activation records, beside BatchNorm statistics and real data.

    python tests/benchmarks/records.py --work FOLDER [--samples 4096] [--iterations 1000] [--steps 6000]
        [--pairs lenet5 hinton1200 lenet5_batch_norm] [--rows "record-top" "record-spectral" "real"] [--seeds 0 1 2]

Source: Lopes, Fenu and Starner 2017. Teachers (`mnist_teachers.py`), records and synthetic sets are kept in FOLDER, so
that an interrupted run goes on; figures that the result file holds for the same settings are not measured again.
Accuracy is that on the test labels, not the agreement with the teacher.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mnist_networks
import torch
from common import accuracy, read_result, write_result
from mnist_teachers import load_mnist, teacher
from torch.nn import functional

import dfq_plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

PAIRS = {"lenet5": "lenet5_half", "hinton1200": "hinton800", "lenet5_batch_norm": "lenet5_half"}
"""The student of each teacher."""

RECORD_ROWS = ("record-top", "record-all", "record-all-dropout", "record-spectral", "record-spectral-pairs")
ROWS = ("real", *RECORD_ROWS, "bns", "gaussian")
TEMPERATURE = 8.0
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


def record_of(name: str, network: nn.Module, arguments: argparse.Namespace) -> Path:
    """Return the folder of a teacher's record, made of the training images where it is not there."""
    folder = arguments.work / f"{name}-record-{arguments.recorded}-{arguments.filters}"
    if not (folder / "record.json").is_file():
        began = time.monotonic()
        images, labels = load_mnist("train")
        chosen = slice(arguments.recorded)
        options = {"dropout_filters": arguments.filters, "max_memory": 8}
        dfq_plugins.record(
            network, (images[chosen], labels[chosen]), mnist_networks.SPEC, output=folder, options=options
        )
        print(f"{folder.name}: {time.monotonic() - began:.0f} s", flush=True)
    return folder


def inputs_of(row: str, name: str, network: nn.Module, seed: int, arguments: argparse.Namespace) -> Tensor:
    """Return the inputs of one row and seed: training images, or a synthetic set."""
    if row == "real":
        images, _ = load_mnist("train")
        return images
    options: dict[str, Any] = {}
    if row in RECORD_ROWS:
        options = {"record": str(record_of(name, network, arguments)), "iterations": arguments.iterations}
        options["step_samples"] = arguments.step_samples
    data = dfq_plugins.synthesize(
        network,
        mnist_networks.SPEC,
        generator=row,
        num_samples=arguments.samples,
        seed=seed,
        options=options,
        output=arguments.work / f"{name}-{row}-{arguments.samples}-{arguments.iterations}-{seed}",
    )
    return torch.cat(list(data.batches(1024)))


def distil(network: nn.Module, student: nn.Module, inputs: Tensor, steps: int, seed: int) -> nn.Module:
    """Train the student on the teacher's soft labels: cross-entropy with both sides at temperature 8, Adam.

    This is the paper's plain recipe, kept here so that the rows differ in their data alone.
    """
    with torch.no_grad():
        soft = torch.cat([network(part) for part in inputs.split(1024)]).div(TEMPERATURE).softmax(1)
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    student.train()
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (BATCH_SIZE,), generator=rng)
        # The gradients of soft labels shrink with the square of the temperature (Hinton et al. 2015).
        loss = TEMPERATURE**2 * functional.cross_entropy(student(inputs[chosen]) / TEMPERATURE, soft[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.eval()


def measure(name: str, row: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the data of one row, train a student on it, and return its figures."""
    network = teacher(name, arguments.work, arguments.epochs)
    test = load_mnist("test")
    began = time.monotonic()
    inputs = inputs_of(row, name, network, seed, arguments)
    made = time.monotonic()
    torch.manual_seed(seed)
    student = distil(network, getattr(mnist_networks, PAIRS[name])(), inputs, arguments.steps, seed)
    with torch.no_grad():
        agreement = (student(test[0]).argmax(1) == network(test[0]).argmax(1)).float().mean()
    return {
        "accuracy": accuracy(student, *test),
        "agreement": 100 * float(agreement),
        "teacher": accuracy(network, *test),
        "samples": len(inputs),
        "seconds_data": made - began,
        "seconds_training": time.monotonic() - made,
    }


def main() -> None:
    """Measure every row that is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["lenet5", "hinton1200"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4096, help="synthetic inputs of a row")
    parser.add_argument("--iterations", type=int, default=1000, help="steps of each batch of record generators")
    parser.add_argument("--step-samples", type=int, default=256, help="inputs in one step; they do not mix")
    parser.add_argument("--steps", type=int, default=6000, help="training steps of the student")
    parser.add_argument("--recorded", type=int, default=60_000, help="training images that are recorded")
    parser.add_argument("--filters", type=int, default=4, help="dropout filters in the record")
    parser.add_argument("--epochs", type=int, default=8, help="of the teachers, where they are to be trained")
    parser.add_argument("--result", default="records", help="name of the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {key: getattr(arguments, key) for key in ("samples", "iterations", "steps", "recorded", "filters")}
    known = read_result(arguments.result) or {}
    cells = known.get("cells", {}) if known.get("settings") == settings else {}
    for name in arguments.pairs:
        for row in arguments.rows:
            if row == "bns" and name != "lenet5_batch_norm":
                continue  # no BatchNorm, nothing to invert
            for seed in arguments.seeds:
                key = f"{name} {row} {seed}"
                if key not in cells:
                    cells[key] = measure(name, row, seed, arguments)
                    write_result(arguments.result, {"settings": settings, "cells": cells})
                print(f"{key}: {cells[key]['accuracy']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
