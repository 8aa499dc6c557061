"""Pruned networks, data-free beside real data: parameters, MACs, latency and accuracy at four sparsities.

    python tests/benchmarks/pruning.py --work FOLDER [--minutes 20] [--rows bns "real 4096"] [--targets 0.7 0.5]

ResNet-20 of the data pack. Synthetic sets and checkpoints are kept in FOLDER, so that an interrupted cell goes on;
cells that the result file holds already are not measured again. `--minutes` bounds the training of one cell, both parts
of it together; `-T` sets anything else about it, `-O` about the pruning. At the end the plot is drawn.

A WRN-16-2, the network of Zhu et al. 2020, is left out: the data pack holds no trained one, and 4,096 training images
do not train one to its published accuracy.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, load_case, read_result, write_result
from finetuning import data_of
from torch.utils.benchmark import Timer

import dfq_plugins
from dfq_plugins.host.options import parse_options
from dfq_plugins.network.cost import measure_cost
from dfq_plugins.pruning import PruneTrainingOptions, PruningOptions
from dfq_plugins.pruning.graph import find_groups, remove_filters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.pruning import PruneRun

NETWORK = "resnet20_cifar10"
ROWS = ("bns", "bns 4096", "real 1024", "real 4096", "gaussian")
TARGETS = (0.7, 0.5, 0.35, 0.25)
BATCHES = (1, 100)
"""Samples in a batch whose latency is measured."""

PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "pruning.svg"
LABELS = {
    "bns": "synthetic images",
    "bns 4096": "4,096 synthetic images",
    "real 4096": "4,096 real images",
    "real 1024": "1,024 real images",
}


def latency(model: nn.Module, batch: int) -> float:
    """Return the median milliseconds of a forward pass."""
    inputs = torch.randn(batch, 3, 32, 32)
    with torch.inference_mode():
        timer = Timer("model(inputs)", globals={"model": model, "inputs": inputs}, num_threads=torch.get_num_threads())
        return 1000 * timer.blocked_autorange(min_run_time=0.3).median


def latencies(model: nn.Module) -> dict[str, float]:
    """Return the latency at each size of a batch."""
    return {str(batch): latency(model, batch) for batch in BATCHES}


def record_of(run: PruneRun, figure: float, seconds: float) -> dict[str, Any]:
    """Return what the result file keeps of one cell."""
    return {
        "accuracy": figure,
        "parameters": run.after.parameters,
        "macs": run.after.macs,
        "latency": latencies(run.model),
        "agreement_before": run.agreement_before,
        "agreement": run.agreement,
        "layers": [asdict(layer) for layer in run.layers],
        "steps": [history[-1].step for history in (run.sparsity_history, run.history) if history],
        "chosen_within_one_error": True,
        "seconds": seconds,
    }


def measure(arguments: argparse.Namespace, row: str, target: float, seed: int, case: tuple[Any, ...]) -> None:
    """Fill one cell."""
    settings, network, real, *test = case
    training = {**pairs(arguments.training), "seed": seed}
    if arguments.minutes:
        training["max_seconds"] = 60 * arguments.minutes
    began = time.monotonic()
    run = dfq_plugins.prune(
        network,
        data_of(row, settings.spec, network, real, seed, arguments.work),
        macs=target,
        spec=settings.spec,
        options=pairs(arguments.option),
        training=training,
        work=arguments.work / "pruning" / f"{row}-{target}-{seed}".replace(" ", "-"),
        listeners=[say],
    )
    seconds = time.monotonic() - began
    figure = accuracy(run.model, *test)
    record = so_far(arguments.result)  # read again: another process may have measured other cells meanwhile
    record["cells"].setdefault(row, {}).setdefault(str(target), {})[str(seed)] = record_of(run, figure, seconds)
    record |= {"training": asdict(run.training), "options": asdict(run.options), "left": dict(run.left)}
    print(f"{seed} {row:12s} {target:5.2f} {figure:6.2f} {run.after} in {seconds:.0f} s", flush=True)
    write_result(arguments.result, record)


def shaped_like(network: nn.Module, sample: Tensor, cell: dict[str, Any]) -> nn.Module:
    """Return the network with as many filters in each layer as the pruned one of a cell."""
    shaped = copy.deepcopy(network)
    groups = find_groups(shaped, sample).usable
    removed = {layer["name"]: list(range(layer["before"] - layer["after"])) for layer in cell["layers"]}
    remove_filters(shaped, sample, groups, removed)
    return shaped.eval()


def time_again(name: str, network: nn.Module, sample: Tensor, rounds: int = 7) -> None:
    """Measure the latencies of all cells anew, in turns, so that noise of the machine meets all alike."""
    record = so_far(name)
    cells = [cell for row in record["cells"].values() for target in row.values() for cell in target.values()]
    networks = [(cell, shaped_like(network, sample, cell)) for cell in cells]
    networks.append((record["float"], network))
    found: list[list[dict[str, float]]] = [[latencies(model) for _, model in networks] for _ in range(rounds)]
    for place, (entry, _) in enumerate(networks):
        entry["latency"] = {key: median(taken[place][key] for taken in found) for key in found[0][place]}
    record["latency_threads"] = torch.get_num_threads()
    write_result(name, record)


def pairs(texts: list[str]) -> dict[str, str]:
    """Return KEY=VALUE texts as a mapping."""
    return dict(text.split("=", 1) for text in texts)


def say(event: Any) -> None:
    """Print how far a training is, now and then."""
    if event.completed % 100 == 0:
        print(f"  {event.stage} {event.completed} of {event.total} {dict(event.metrics)}", flush=True)


def so_far(name: str) -> dict[str, Any]:
    """Return what the result file holds."""
    return read_result(name) or {"cells": {}}


def draw(record: dict[str, Any]) -> None:
    """Draw accuracy over MACs, one line per row, the mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for row, cells in record["cells"].items():
        points = sorted(
            (mean(cell, "macs") / record["float"]["macs"], mean(cell, "accuracy")) for cell in cells.values()
        )
        if len(cells) > 1:  # a single one is no line
            points.append((1.0, record["float"]["accuracy"]))
        axes.plot(*zip(*points, strict=True), marker="o", label=LABELS.get(row, row))
    axes.axhline(record["float"]["accuracy"], color="0.7", linewidth=1, zorder=0)
    axes.set_xlabel("fraction of MACs left")
    axes.set_ylabel("top-1, %")
    axes.set_title("ResNet-20 on CIFAR-10, pruned", loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, metadata={"Date": None})
    print(f"drew {PLOT.name}")


def mean(cell: dict[str, Any], name: str) -> float:
    """Return the mean of a figure over the seeds."""
    return sum(one[name] for one in cell.values()) / len(cell)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=["bns", "real 4096"], choices=ROWS)
    parser.add_argument("--targets", type=float, nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="most minutes of training in one cell")
    parser.add_argument("-T", "--training", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-O", "--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--result", default=f"pruning-{NETWORK}", help="name of the result file")
    parser.add_argument("--latency", action="store_true", help="only measure the latencies again, with nothing beside")
    arguments = parser.parse_args()
    parse_options(PruneTrainingOptions, pairs(arguments.training))
    parse_options(PruningOptions, pairs(arguments.option))
    torch.set_num_threads(arguments.threads)
    settings, network, real, inputs, labels = load_case(NETWORK)
    if arguments.latency:
        time_again(arguments.result, network, real[:2])
        return
    test = inputs[: arguments.test_images], labels[: arguments.test_images]
    cost = asdict(measure_cost(network, settings.spec))
    whole = cost | {"accuracy": accuracy(network, *test), "latency": latencies(network)}
    write_result(arguments.result, {**so_far(arguments.result), "float": whole, "test_samples": len(test[1])})
    for seed in arguments.seeds:
        for target in arguments.targets:
            for row in arguments.rows:
                if str(seed) not in so_far(arguments.result)["cells"].get(row, {}).get(str(target), {}):
                    measure(arguments, row, target, seed, (settings, network, real, *test))
    draw(so_far(arguments.result))


if __name__ == "__main__":
    main()
