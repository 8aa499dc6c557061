"""How long `run_quantization` with its files takes, in float passes over the same samples.

One row per network, one column per framework: seconds, and (seconds - 5) / float pass, which is to stay below 5.

python tests/benchmarks/export_times.py [--networks resnet18 mobilenet_v3_small resnet50] [--calibrators ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import write_result

import dfq_plugins
from dfq_plugins.errors import DfqError

NETWORKS = ("resnet18", "mobilenet_v3_small", "resnet50")
CALIBRATORS = ("torch-ao", "pytorch-quantization", "brevitas")
SAMPLES, SIDE, BATCH = 64, 224, 64
ALLOWANCE = 5.0
"""Seconds that do not count: importing a framework and starting ONNX Runtime cost the same on every network."""


def structured_images(count: int, side: int) -> torch.Tensor:
    """Return smooth noise `(count, 3, side, side)`, normalized."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, side // 8, side // 8, generator=rng)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def network_of(name: str) -> torch.nn.Module:
    """Return a torchvision network with random weights and BatchNorm statistics of a training pass."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).train()
    with torch.no_grad():
        for _ in range(3):
            network(structured_images(16, 96))
    return network.eval()


def one_cell(name: str, calibrator: str) -> dict[str, Any]:
    """Return the seconds of a float pass and of the whole call, in this process."""
    network, images = network_of(name), structured_images(SAMPLES, SIDE)
    passes = []
    with torch.no_grad():
        network(images[:2])
        for _ in range(3):
            began = time.perf_counter()
            for batch in images.split(BATCH):
                network(batch)
            passes.append(time.perf_counter() - began)
    spec = dfq_plugins.InputSpec((3, SIDE, SIDE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.0, 1.0))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        try:
            run = dfq_plugins.run_quantization(network, images, calibrator=calibrator, spec=spec, output=folder)
            outcome = ", ".join(artifact.path.name for artifact in run.artifacts)
        except DfqError as error:
            outcome = f"refused: {error}"
        seconds = time.perf_counter() - began
    return {"float_pass": statistics.median(passes), "seconds": seconds, "outcome": outcome}


def main() -> None:
    """Measure each cell in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--calibrators", nargs="+", default=CALIBRATORS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cell", nargs=2, metavar=("NETWORK", "CALIBRATOR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.cell:
        print(json.dumps(one_cell(*arguments.cell)))
        return
    cells: dict[str, dict[str, Any]] = {}
    for name in arguments.networks:
        for calibrator in arguments.calibrators:
            command = [sys.executable, "-W", "ignore", __file__, "--threads", str(arguments.threads)]
            done = subprocess.run(
                [*command, "--cell", name, calibrator], check=True, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
            )
            cell = json.loads(done.stdout.splitlines()[-1])
            cells.setdefault(name, {})[calibrator] = cell
            passes = (cell["seconds"] - ALLOWANCE) / cell["float_pass"]
            print(
                f"{name:22} {calibrator:22} {cell['seconds']:7.1f} s  {passes:5.1f} float passes of "
                f"{cell['float_pass']:.2f} s  {cell['outcome'][:80]}",
                flush=True,
            )
    write_result("export-times", {"samples": SAMPLES, "side": SIDE, "budget": ALLOWANCE, "cells": cells})


if __name__ == "__main__":
    main()
