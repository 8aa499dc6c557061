"""A smaller network, distilled: ResNet-56 into a ResNet-20-sized student, data-free beside real data, by one budget.

    python tests/benchmarks/distilling.py --work FOLDER --minutes 60 [--rows bns adversarial "real 4096"] [--inherit]

Sets and checkpoints are kept in FOLDER, so that an interrupted cell goes on; cells that the result file holds already
are not measured again. `--minutes` bounds the training of one cell, without the synthesis, whose seconds stand beside
it; `-T` sets anything else about the training; with `--inherit` the student begins with weights of the teacher (give
it a `--label` of its own). The curve of each training is in the result file.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import CASES, accuracy, is_complete, networks, read_result, write_result

import dfq_plugins
from dfq_plugins.distillation.options import DistillOptions
from dfq_plugins.host.options import parse_options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.distillation.run import DistillRun

TEACHER, STUDENT = "resnet56_cifar10", "resnet20_cifar10"
ROWS = ("bns", "bns 4096", "bns+inception", "adversarial", "bns+adversarial", "real 4096", "gaussian")
SAMPLES = 2048
"""Of a synthetic set, where the row names no other number."""

CASE = replace(CASES[STUDENT], network=TEACHER)


def synthetic_set(generator: str, samples: int, network: nn.Module, seed: int, work: Path) -> tuple[Any, float]:
    """Return a set of the teacher and the seconds that its synthesis took, which are kept beside it."""
    folder = work / f"{TEACHER}-{generator}-{samples}-{seed}"
    taken = folder.with_name(f"{folder.name}.seconds")
    if not is_complete(folder):
        began = time.monotonic()
        dfq_plugins.synthesize(network, CASE.spec, generator=generator, num_samples=samples, seed=seed, output=folder)
        taken.write_text(str(time.monotonic() - began))
    return dfq_plugins.SyntheticDataset.open(folder), float(taken.read_text())


def inputs_of(row: str, network: nn.Module, seed: int, work: Path) -> tuple[dict[str, Any], float]:
    """Return what `distill` is given for one row, and the seconds of a synthesis."""
    kind, _, count = row.partition(" ")
    if kind == "real":
        return {"data": networks().load_split(CASE.calibration_split, TEACHER)[0][: int(count)]}, 0.0
    kind, _, learner = kind.rpartition("+") if kind.endswith("adversarial") else (kind, "", "")
    # A generator that learns makes half of the training's inputs, or all where no set is named; the set beside it
    # selects the best state.
    data, seconds = synthetic_set(kind or "bns", int(count or SAMPLES), network, seed, work)
    return {"data": data, **({"generator": learner} if learner else {})}, seconds


def new_student(seed: int) -> nn.Module:
    """Return a ResNet-20 with first weights drawn by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student: nn.Module = networks().ARCHITECTURES[STUDENT]()
        return student


def record_of(run: DistillRun, figure: float, seconds: float, synthesis: float) -> dict[str, Any]:
    """Return what the result file keeps of one cell."""
    return {
        "accuracy": figure,
        "agreement": run.agreement,
        "seconds": seconds,
        "synthesis_seconds": synthesis,
        "steps": run.history[-1].step,
        "chosen_within_one_error": True,
    }


def measure(
    arguments: argparse.Namespace, row: str, seed: int, network: nn.Module, test: tuple[Tensor, Tensor]
) -> None:
    """Fill one cell."""
    training = {**dict(text.split("=", 1) for text in arguments.training), "seed": seed}
    if arguments.minutes:
        training["max_seconds"] = 60 * arguments.minutes
    given, synthesis = inputs_of(row, network, seed, arguments.work)
    work = arguments.work / "distilling" / f"{arguments.label}-{row}-{seed}".replace(" ", "-")
    began = time.monotonic()
    if row == "adversarial":
        training |= {"generator_fraction": 1.0}
    given |= {"inherit": arguments.inherit, "training": training, "work": work}
    run = dfq_plugins.distill(network, new_student(seed), spec=CASE.spec, listeners=[say], **given)
    seconds = time.monotonic() - began
    figure = accuracy(run.model, *test)
    record = so_far(arguments.result)  # read again: another process may have measured other cells meanwhile
    cell = record_of(run, figure, seconds, synthesis)
    record["cells"].setdefault(row, {}).setdefault(arguments.label, {})[str(seed)] = cell
    record |= {"teacher_cost": asdict(run.teacher_cost), "student_cost": asdict(run.student_cost)}
    record.setdefault("training", {})[arguments.label] = asdict(run.training)
    print(f"{seed} {row:16s} {figure:6.2f} in {seconds:.0f} s", flush=True)
    write_result(arguments.result, record)


def say(event: Any) -> None:
    """Print how far a training is, now and then."""
    if event.completed % 200 == 0:
        print(f"  {event.stage} {event.completed} of {event.total} {dict(event.metrics)}", flush=True)


def so_far(name: str) -> dict[str, Any]:
    """Return what the result file holds."""
    return read_result(name) or {"cells": {}}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=["bns", "adversarial", "real 4096"], choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="most minutes of training in one cell")
    parser.add_argument("-T", "--training", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--label", default="default", help="name of the column in the result, where -T makes it another"
    )
    parser.add_argument("--inherit", action="store_true", help="begin with the weights of the teacher that fit")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--result", default="distilling-resnet56-resnet20", help="name of the result file")
    arguments = parser.parse_args()
    parse_options(DistillOptions, dict(text.split("=", 1) for text in arguments.training))
    torch.set_num_threads(arguments.threads)
    pack = networks()
    teacher, student = pack.build(TEACHER), pack.build(STUDENT)
    test = tuple(part[: arguments.test_images] for part in pack.load_split(CASE.test_split, TEACHER))
    whole = {"teacher": accuracy(teacher, *test), "student_trained_on_all_real_data": accuracy(student, *test)}
    about = {"float": whole, "samples": SAMPLES, "test_samples": len(test[1])}
    write_result(arguments.result, {**so_far(arguments.result), **about})
    for seed in arguments.seeds:
        for row in arguments.rows:
            if str(seed) not in so_far(arguments.result)["cells"].get(row, {}).get(arguments.label, {}):
                measure(arguments, row, seed, teacher, test)


if __name__ == "__main__":
    main()
