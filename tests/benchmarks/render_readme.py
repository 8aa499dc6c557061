"""The tables of the README, from the JSON results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common import read_result
from render_tables import ALL_OF_THE_SHIFT, accuracies, figure, is_throughout, table

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
CALIBRATED = {"real data": "1,024 real images", "bns": "1,024 synthetic images", "gaussian": "noise"}
FINETUNED, PRUNED = "finetuning-resnet20_cifar10", "pruning-resnet20_cifar10"
DISTILLED = "distilling-resnet56-resnet20"
TRAINED = (
    ("fine-tuned: Brevitas W4A4", FINETUNED, "bns 4096", "brevitas-w4a4"),
    ("fine-tuned: pytorch-quantization W4A4", FINETUNED, "bns 4096", "pytorch-quantization-w4a4"),
    ("fine-tuned: Brevitas W3A3", FINETUNED, "bns", "brevitas-w3a3"),
    ("pruned to 70% of MACs", PRUNED, "bns 4096", "0.7"),
    ("pruned to 50% of MACs", PRUNED, "bns 4096", "0.5"),
    ("distilled from ResNet-56, initialized from some of its blocks", DISTILLED, "bns", "inherited"),
)
"""Title, result file, row of the synthetic images and column, which is compared with the same on 4,096 real images."""


def calibrated() -> str:
    """Return ResNet-20 in every framework, calibrated on real data, on synthetic data and on noise."""
    record = _read("calibration-resnet20_cifar10")
    columns = [column for column in record["coverage"] if "strength" not in column and not is_throughout(column)]
    rows = [["float network", *[f"{record['float']:.2f}"] * len(columns)]]
    for row, label in CALIBRATED.items():
        cells = record["cells"].get(row, {})
        rows.append([label, *[figure(list(cells.get(column, {}).values())) for column in columns]])
    best = list(record["cells"].get("real data", {}).get(ALL_OF_THE_SHIFT, {}).values())
    seeds = max(len(cell) for row in record["cells"].values() for cell in row.values())
    note = (
        "All layers are quantized, including the first and last; the image and Brevitas's additions have 8 bits. Mean "
        f"± standard deviation over {seeds} seeds, 9,980 test images. With `correction_strength=1`, intended for real "
        f"data, real images reach {figure(best)} in Brevitas W4A4.\n"
    )
    return table(["ResNet-20 on CIFAR-10, top-1 %, calibrated on", *columns], rows) + "\n" + note


def trained() -> str:
    """Return the accuracy of a quantized, pruned or distilled network after a few minutes of training."""
    rows = []
    for title, name, row, column in TRAINED:
        record = _read(name)
        ours, theirs = (accuracies(record["cells"][kind][column]) for kind in (row, "real 4096"))
        rows.append([title, _samples(record, row), figure(ours), figure(theirs), str(min(len(ours), len(theirs)))])
    header = ["ResNet-20, trained for a few minutes", "synthetic images", "top-1 %", "on 4,096 real images", "seeds"]
    teacher = _read(DISTILLED)["float"]["teacher"]
    return table(header, rows) + f"\nResNet-56 reaches {teacher:.2f}. [All tables](docs/benchmarks.md).\n"


def write_readme(readme: Path) -> None:
    """Put the tables between their markers."""
    head, rest = readme.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    readme.write_text(f"{head}{BEGIN}\n{calibrated()}\n{trained()}{END}{tail}")


def _read(name: str) -> dict[str, Any]:
    record = read_result(name)
    assert record is not None, f"results/{name}.json is missing"
    return record


def _samples(record: dict[str, Any], row: str) -> str:
    count = row.partition(" ")[2] or record["samples"]
    return f"{int(count):,}"
