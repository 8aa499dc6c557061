"""The sections of docs/benchmarks.md on fine-tuning and on activation records, from their results."""

from __future__ import annotations

from typing import Any

from common import read_result
from finetuning import COLUMNS
from records import ROWS as RECORD_ROWS
from render_tables import accuracies, figure, origin, table

PAIRS = {
    "lenet5": "LeNet-5 into half of it",
    "hinton1200": "1200-1200 into 800-800",
    "lenet5_batch_norm": "LeNet-5 with BatchNorm into half of LeNet-5",
}
PAPER = {
    "lenet5": {
        "real": 98.65,
        "record-top": 77.30,
        "record-all": 85.61,
        "record-spectral": 90.28,
        "record-spectral-pairs": 92.47,
    },
    "hinton1200": {
        "real": 95.70,
        "record-top": 68.75,
        "record-all": 76.38,
        "record-all-dropout": 76.23,
        "record-spectral": 89.41,
        "record-spectral-pairs": 91.24,
    },
}
"""Lopes, Fenu and Starner 2017, accuracy of the student in percent."""

SHOWN = ("bns", "bns 4096", "real 1024", "real 4096")
"""Rows of the result that stand beside each other; the others are ablations."""

ABLATED = "pytorch-quantization-w4a4"
"""The column that inputs and settings are compared in."""


def finetuning_sections() -> list[str]:
    """Return what fine-tuning reaches, and what its settings do."""
    parts = [_accuracy(), *_curve(), _other_network(), _settings()]
    found = [part for part in parts if part]
    return ["## Accuracy after fine-tuning\n", *found] if found else []


def _accuracy() -> str:
    record = read_result("finetuning-resnet20_cifar10")
    if record is None or not record["cells"]:
        return ""
    cells, kinds = record["cells"], [row for row in SHOWN if row in record["cells"]]
    rows = [
        [
            _title(label) + _mark(cells, label),
            *(figure(accuracies(cells[kind].get(label))) for kind in kinds),
            _behind(record["float"], cells.get("bns", {}).get(label)),
            f"{options['steps']}",
            _minutes(cells, label),
        ]
        for label, options in record["training"].items()
        if any(label in cells.get(kind, {}) for kind in kinds)
    ]
    header = ["setting", *kinds, "bns behind float", "steps", "minutes"]
    text = (
        "### ResNet-20 on CIFAR-10\n\n"
        f"The float network ({record['float']:.2f}) teaches; {record['samples']} synthetic images, or as many real "
        f"ones as the column says. The recipe is the same across a row; {record['test_samples']} images classified; "
        f"{_seeds(cells, kinds)}. "
        "All layers are quantized, first and last included (binary: all but these two). The image has 8 bits, and in "
        "Brevitas both inputs of every addition, unless the row says otherwise; pytorch-quantization leaves additions "
        "in float. Minutes are those of calibration and training on one processor, without synthesis, while other "
        "work ran on the machine. Rates and augmentation were chosen by the test accuracy of students of `bns`, seed "
        "0, over some twenty trials: that favors this column. Additions got their 8 bits after trials on 2,048 "
        "training and 2,500 test images. The last state is kept that is no worse on held-out samples than the best one "
        "by more than the standard error (judged at temperature 1 in seeds 0 to 2 of pytorch-quantization w4a4, but "
        "for real 1024, and in seed 0 of binary; at the training's in the others). *: the state of the very lowest "
        "loss.\n"
    )
    return "\n".join([text, table(header, rows), origin(record)])


def _seeds(cells: dict[str, Any], kinds: list[str], usual: int = 3) -> str:
    """Return over how many seeds a mean is taken."""
    more = "".join(
        f", {len(seeds)} in {_title(label)} on {kind}"
        for kind in kinds
        for label, seeds in cells[kind].items()
        if len(seeds) > usual
    )
    return f"mean ± deviation over {usual} seeds{more}; a single figure is one seed"


def _curve() -> list[str]:
    """Return the picture of accuracy over time, if there is one."""
    record = read_result("finetuning-curve")
    if record is None:
        return []
    curves = record["curves"]
    lasts = ", ".join(f"{name} {curve['points'][-1][0] / 60:.0f}" for name, curve in curves.items())
    threads, count = record["environment"]["threads"], next(iter(curves.values()))["test_images"]
    text = (
        f"\nFrom nothing but the network, synthesis included, W4A4 takes so many minutes on {threads} processor(s): "
        f"{lasts}. Accuracy on the first {count:,} test images, one seed, on the way:\n"
    )
    return [text, "![Accuracy over time from the start of the synthesis](images/finetuning.svg)\n"]


def _other_network() -> str:
    record = read_result("finetuning-mobilenetv1_075_imagenet")
    if record is None or not record["cells"]:
        return ""
    rows = [
        [_title(label), row, f"{cell['before']:.2f}", f"{cell['accuracy']:.2f}", f"{cell['steps']}"]
        for row, columns in record["cells"].items()
        for label, cells in columns.items()
        for cell in cells.values()
    ]
    batch = next(iter(record["training"].values()))["batch_size"]
    text = (
        f"### MobileNetV1 0.75 on an ImageNet sample\n\nThe float network reaches {record['float']:.2f}; "
        f"{record['samples']} synthetic images, batches of {batch}, one seed, {record['test_samples']} images "
        "classified: one image is 0.13 points.\n"
    )
    header = ["setting", "trained on", "calibrated", "trained", "steps"]
    return "\n".join([text, table(header, rows), origin(record)])


def _settings() -> str:
    record, usual = read_result("finetuning-ablation"), read_result("finetuning-resnet20_cifar10")
    if record is None or usual is None:
        return ""
    cells = [
        (row, "the default", columns[ABLATED]["0"]) for row, columns in usual["cells"].items() if ABLATED in columns
    ]
    cells += [(row, label, cell["0"]) for row, columns in record["cells"].items() for label, cell in columns.items()]
    rows = [
        [row, label, f"{cell['accuracy']:.2f}", f"{cell['seconds'] / 60:.1f}"]
        for row, label, cell in sorted(cells, key=lambda found: -found[2]["accuracy"])
    ]
    text = (
        "### Inputs and settings of the training\n\npytorch-quantization at W4A4, 600 steps, seed 0, best first. "
        "*Beside it*: the generator makes half of each batch, the set on the left the rest; *alone*: all of it. "
        "The other lines change what they name of the default: images shifted over a border of 4 pixels and "
        "mirrored, KL divergence at temperature 4, no mixup, no other loss. Seeds differ as much as many lines."
        f"{_features(usual)}\n"
    )
    return "\n".join([text, table(["trained on", "setting", "top-1", "minutes"], rows), origin(record)])


def _features(usual: dict[str, Any]) -> str:
    """Return what comparing the stages does at other widths, beside the same recipe without."""
    record = read_result("finetuning-features")
    if record is None:
        return ""
    told = [
        f"{_title(label)} on {row} {cell['0']['accuracy']:.2f} in {cell['0']['steps']:,} steps (without: "
        f"{usual['cells'][row][label]['0']['accuracy']:.2f} in {usual['cells'][row][label]['0']['steps']:,})"
        for row, columns in record["cells"].items()
        for label, cell in columns.items()
    ]
    return f" With `feature_weight=100`: {', '.join(told)}."


def records_section() -> str:
    """Return what students reach that were distilled from activation records."""
    record = read_result("records")
    if record is None or not record["cells"]:
        return ""
    settings = record["settings"]
    text = (
        "### Students from activation records: MNIST\n\n"
        f"{settings['samples']} rebuilt inputs, {settings['iterations']} iterations each (the paper: 1,000), and all "
        f"60,000 training images for `real`; the student takes {settings['steps']} steps on the teacher's soft labels. "
        "Accuracy on the 10,000 test labels, one seed, or mean ± deviation over two; beside it the paper's (Lopes, "
        "Fenu and Starner 2017).\n"
    )
    parts = [text]
    for name, cells in _by_pair(record["cells"]).items():
        teacher = next(iter(next(iter(cells.values())).values()))["teacher"]
        rows = [
            [
                row,
                figure(accuracies(seeds)),
                f"{PAPER.get(name, {}).get(row, float('nan')):.2f}".replace("nan", "-"),
                f"{sum(one['seconds_data'] for one in seeds.values()) / len(seeds) / 60:.1f}",
            ]
            for row, seeds in sorted(cells.items(), key=lambda item: RECORD_ROWS.index(item[0]))
        ]
        header = [f"{PAIRS[name]} (teacher {teacher:.2f})", "top-1", "in the paper", "minutes to make the data"]
        parts.append(table(header, rows))
    return "\n".join([*parts, origin(record)])


def _by_pair(cells: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the cells, which go by "pair row seed", by pair, row and seed."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, cell in cells.items():
        name, row, seed = key.split(" ")
        found.setdefault(name, {}).setdefault(row, {})[seed] = cell
    return found


def _title(label: str) -> str:
    calibrator, recipe, options = COLUMNS.get(label, (label, "", {}))
    names = {"input_bits": "image", "addition_bits": "additions"}
    narrow = [f"{name} at {options[option]} bits" for option, name in names.items() if option in options]
    return ", ".join([f"{calibrator} {recipe}", *narrow])


def _mark(cells: dict[str, Any], label: str) -> str:
    """Return an asterisk where a cell was measured before held-out losses had standard errors."""
    found = [one for row in cells.values() for one in row.get(label, {}).values()]
    return "" if all(one["chosen_within_one_error"] for one in found) else " \\*"


def _behind(whole: float, seeds: dict[str, Any] | None) -> str:
    found = accuracies(seeds)
    return f"{whole - sum(found) / len(found):.2f}" if found else "-"


def _minutes(cells: dict[str, Any], label: str) -> str:
    taken = [one["seconds"] / 60 for row in cells.values() for one in row.get(label, {}).values() if one["seconds"]]
    return f"{sum(taken) / len(taken):.1f}"
