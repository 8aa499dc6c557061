"""What a student should be compared in: ResNet-56 distilled into two small students, by one synthetic set and budget.

    python tests/benchmarks/distilling_terms.py --work FOLDER [--seed 0] [--threads 1]

The set and the checkpoints are kept in FOLDER; cells that the result file holds already are not measured again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, networks, read_result, write_result
from distilling import CASE, SAMPLES, TEACHER, new_student, record_of, say, synthetic_set
from torch import nn

import dfq_plugins

if TYPE_CHECKING:
    from torch import Tensor

RESULT = "distilling-terms"
GENERATOR = "bns"
ALONE: dict[str, Any] = {"feature_weight": 0}
SAME, HALF = "ResNet-20's size, 4 minutes", "half its channels, 3 minutes"
MINUTES = {SAME: 4, HALF: 3}
COMPARED: dict[str, dict[str, dict[str, Any]]] = {
    SAME: {
        "outputs only": ALONE,
        "outputs only, blended (mixup 1)": {**ALONE, "mixup": 1},
        "attention maps too, weight 100": {**ALONE, "attention_weight": 100},
        "features too, weight 10": {"feature_weight": 10},
        "features too, weight 100": {"feature_weight": 100},
        "features too, weight 1000": {"feature_weight": 1000},
        "features too, weight 100; inherited": {"feature_weight": 100},
    },
    HALF: {
        "outputs only": ALONE,
        "attention maps too, weight 100": {**ALONE, "attention_weight": 100},
        "features too, weight 100": {"feature_weight": 100},
    },
}
"""Settings of the training, by student and what is compared."""


def half_student(seed: int) -> nn.Module:
    """Return a ResNet-20 of 8, 16 and 32 channels with first weights drawn by the seed."""
    pack = networks()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student: nn.Module = pack.CifarResNet(3)
        student.conv1, student.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        before = 8
        for stage, channels in enumerate((8, 16, 32), start=1):
            first = pack.BasicBlockA(before, channels, 1 if stage == 1 else 2)
            others = [pack.BasicBlockA(channels, channels, 1) for _ in range(2)]
            setattr(student, f"layer{stage}", nn.Sequential(first, *others))
            before = channels
        student.linear = nn.Linear(before, 10)
        return student


STUDENTS = {SAME: new_student, HALF: half_student}


def measure(
    arguments: argparse.Namespace, name: str, compared: str, network: nn.Module, test: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Return the cell of one student and what it is compared in."""
    data, synthesis = synthetic_set(GENERATOR, SAMPLES, network, arguments.seed, arguments.work)
    training = {**COMPARED[name][compared], "max_seconds": 60 * MINUTES[name], "seed": arguments.seed}
    work = arguments.work / "terms" / f"{name}-{compared}-{arguments.seed}".replace(" ", "-")
    began = time.monotonic()
    run = dfq_plugins.distill(
        network,
        STUDENTS[name](arguments.seed),
        data,
        spec=CASE.spec,
        training=training,
        inherit=compared.endswith("inherited"),
        work=work,
        listeners=[say],
    )
    seconds = time.monotonic() - began
    return record_of(run, accuracy(run.model, *test), seconds, synthesis)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pack = networks()
    network, test = pack.build(TEACHER), pack.load_split(CASE.test_split, TEACHER)
    record = read_result(RESULT) or {"students": {}}
    record |= {"generator": GENERATOR, "samples": SAMPLES, "seed": arguments.seed, "test_samples": len(test[1])}
    for name, settings in COMPARED.items():
        cells = record["students"].setdefault(name, {})
        for compared in settings:
            if compared not in cells:
                cells[compared] = measure(arguments, name, compared, network, test)
                print(f"{name}: {compared} {cells[compared]['accuracy']:.2f}", flush=True)
                write_result(RESULT, record)


if __name__ == "__main__":
    main()
