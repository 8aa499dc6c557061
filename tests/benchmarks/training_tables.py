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
"""Rows of the result that are compared with each other; the others are ablations."""

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
        f"The float network ({record['float']:.2f}) is the teacher. Training uses {record['samples']} synthetic "
        "images, or the number in the column's name. The recipe is the same across a row. Tested on "
        f"{record['test_samples']} images; {_seeds(cells, kinds)}. "
        "All layers are quantized, including the first and last (binary: all except these two). The image has 8 bits, "
        "and so do both inputs of every addition in Brevitas, unless the row says otherwise; pytorch-quantization "
        "leaves additions in float. The minutes are for calibration and training on one processor, without synthesis, "
        "while other work ran on the machine. Learning rates and augmentation were chosen by the test accuracy of "
        "students of `bns`, seed 0, in about twenty trials, which favors this column. The 8 bits of additions were "
        "chosen after trials on 2,048 training and 2,500 test images. The state that is kept is the last one whose "
        "held-out loss is within one standard error of the best (at temperature 1 in seeds 0 to 2 of "
        "pytorch-quantization w4a4, except real 1024, and in seed 0 of binary; at the training temperature in the "
        "others). *: the state with the lowest loss.\n"
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
    return f"mean ± standard deviation over {usual} seeds{more}; a single figure is one seed"


def _curve() -> list[str]:
    """Return the picture of accuracy over time, if there is one."""
    record = read_result("finetuning-curve")
    if record is None:
        return []
    curves = record["curves"]
    lasts = ", ".join(f"{name} {curve['points'][-1][0] / 60:.0f}" for name, curve in curves.items())
    threads, count = record["environment"]["threads"], next(iter(curves.values()))["test_images"]
    text = (
        f"\nMinutes from just the network to W4A4, including synthesis, on {threads} processor(s): "
        f"{lasts}. Accuracy on the first {count:,} test images over that time, one seed:\n"
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
        "### MobileNetV1 0.75 on a sample of ImageNet's training images\n\n"
        f"The float network reaches {record['float']:.2f}; "
        f"{record['samples']} synthetic images, batches of {batch}, one seed, tested on {record['test_samples']} "
        "images: one image is 0.13 points.\n"
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
        "*Half of the batch*: the generator makes half of each batch, and the set on the left supplies the rest. "
        "Each of the other rows changes one thing in the default: images mirrored, padded by 4 pixels and cropped, "
        "KL divergence at temperature 4, no mixup, no other loss. Seeds differ as much as many rows."
        f"{_features(usual)}\n"
    )
    return "\n".join([text, table(["trained on", "setting", "top-1", "minutes"], rows), origin(record)])


def _features(usual: dict[str, Any]) -> str:
    """Return what comparing the stages does at other widths, compared with the same recipe without."""
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
        f"60,000 training images for `real`. The student takes {settings['steps']} steps on the teacher's soft labels. "
        "Accuracy on the 10,000 test images, one seed, or mean ± standard deviation over two, compared with the "
        "paper's (Lopes, Fenu and Starner 2017).\n"
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
