"""What FINN's rules cost: accuracy with target=finn beside the default, on real and on synthetic calibration data.

    python tests/benchmarks/finn.py --work FOLDER [--page]

Synthetic sets are kept in FOLDER and used again; cells that the result file holds already are not measured again.
`--page` writes the table between the markers of docs/how-to/brevitas.md and measures nothing.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, is_complete, load_case, read_result, write_result

import dfq_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

NETWORK, RESULT = "resnet20_cifar10", "finn-resnet20_cifar10"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "brevitas.md"
MARKERS = ("<!-- finn accuracy -->", "<!-- end of finn accuracy -->")
COLUMNS: dict[str, dict[str, Any]] = {
    "default": {},
    "`target=finn`": {"target": "finn"},
    "`target=finn`, `power_of_two_scales=true`": {"target": "finn", "power_of_two_scales": True},
}
RECIPE = "w4a4"
GENERATOR = "bns"


def rows_of(
    network: nn.Module, spec: dfq_plugins.InputSpec, real: Tensor, seed: int, samples: int, work: Path
) -> Iterator[tuple[str, Tensor | dfq_plugins.SyntheticDataset]]:
    """Yield the calibration data of each row for one seed."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    yield "real data", real[order[:samples]]
    folder = work / f"{NETWORK}-{GENERATOR}-{samples}-{seed}"
    if is_complete(folder):
        yield GENERATOR, dfq_plugins.SyntheticDataset.open(folder)
    else:
        yield (
            GENERATOR,
            dfq_plugins.synthesize(network, spec, generator=GENERATOR, num_samples=samples, seed=seed, output=folder),
        )


def measure(work: Path, seeds: list[int], samples: int, test_samples: int) -> None:
    """Fill the cells that the result file does not hold yet."""
    case, network, real, inputs, labels = load_case(NETWORK)
    inputs, labels = inputs[:test_samples], labels[:test_samples]
    record = read_result(RESULT) or {"cells": {}}
    record |= {
        "samples": samples,
        "test_samples": len(labels),
        "recipe": RECIPE,
        "float": accuracy(network, inputs, labels),
    }
    for seed in seeds:
        for row, data in rows_of(network, case.spec, real, seed, samples, work):
            for column, options in COLUMNS.items():
                cells = record["cells"].setdefault(row, {}).setdefault(column, {})
                if str(seed) in cells:
                    continue
                quantized = dfq_plugins.quantize(
                    network, data, calibrator="brevitas", recipe=RECIPE, options=options, spec=case.spec
                )
                cells[str(seed)] = accuracy(quantized, inputs, labels)
                print(f"{seed} {row:10s} {column:42s} {cells[str(seed)]:6.2f}", flush=True)
                write_result(RESULT, record)


def table(record: dict[str, Any]) -> str:
    """Return the accuracies as Markdown, with what they were measured on."""
    about = record["environment"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "brevitas"))
    seeds = sorted({seed for row in record["cells"].values() for cells in row.values() for seed in cells})
    lines = [f"| {record['recipe'].upper()} | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for row, columns in record["cells"].items():
        name = f"synthetic (`{row}`)" if row == GENERATOR else row
        lines.append(f"| {name} | {' | '.join(_cell(columns.get(column, {})) for column in COLUMNS)} |")
    return (
        f"ResNet-20 on CIFAR-10, top-1 % on the first {record['test_samples']:,} test images (float "
        f"{record['float']:.2f}), {record['samples']} calibration images, seeds {', '.join(seeds)}: mean and range.\n"
        f"{versions}, {about['processor']}.\n\n" + "\n".join(lines)
    )


def _cell(cells: dict[str, float]) -> str:
    values = list(cells.values())
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def write_page(record: dict[str, Any]) -> None:
    """Put the table between its markers in the how-to."""
    begin, end = MARKERS
    text = PAGE.read_text()
    pattern = re.escape(begin) + r".*?" + re.escape(end)
    PAGE.write_text(re.sub(pattern, lambda _match: f"{begin}\n{table(record)}\n{end}", text, flags=re.DOTALL))


def main() -> None:
    """Measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--test-samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.page:
        write_page(read_result(RESULT) or parser.error("nothing was measured yet: give --work"))
    elif arguments.work is None:
        parser.error("give --work FOLDER, which keeps the synthetic sets")
    else:
        measure(arguments.work, arguments.seeds, arguments.samples, arguments.test_samples)


if __name__ == "__main__":
    main()
