"""The sections of docs/benchmarks.md on pruned and distilled networks, from their JSON results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import read_result
from render_tables import figure

PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "pruning.svg"


PUBLISHED = (
    "Published on CIFAR-10, with hours on GPUs (Fang et al. 2021, arXiv 2105.08584, table 1; adaptive DeepInversion, "
    "then CMI; the student on all real data in brackets): WRN-40-2 (94.87) into WRN-16-1 83.01, 90.01 (91.12); "
    "ResNet-34 (95.70) into ResNet-18 93.26, 94.84 (95.20)."
)
"""Other networks than ours, so only the distance from the student's own figure on real data compares."""


def pruning_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one row for each share of the MACs and each kind of data."""
    header = ["MACs", "trained on", "parameters", "MACs, M", "ms, batch 1", "ms, batch 100", "top-1"]
    whole = record["float"]
    rows = [["100 %", "whole network", *_figures([whole])]]
    targets = sorted({target for cells in record["cells"].values() for target in cells}, key=float, reverse=True)
    for target in targets:
        for row, cells in record["cells"].items():
            if target in cells:
                rows.append([f"{float(target):.0%}", row, *_figures(list(cells[target].values()))])
    return header, rows


def _figures(seeds: list[dict[str, Any]]) -> list[str]:
    def mean(*path: str) -> float:
        values = []
        for one in seeds:
            value: Any = one
            for name in path:
                value = value[name]
            values.append(value)
        return float(sum(values) / len(values))

    return [
        f"{mean('parameters'):,.0f}",
        f"{mean('macs') / 1e6:.1f}",
        f"{mean('latency', '1'):.2f}",
        f"{mean('latency', '100'):.1f}",
        figure([one["accuracy"] for one in seeds]),
    ]


def _pruning_settings(record: dict[str, Any]) -> str:
    training, options = record["training"], record["options"]
    limit = training["max_seconds"]
    within = (
        f", all within {limit / 60:.0f} minutes on {record['environment']['threads']} processor(s)" if limit else ""
    )
    return (
        f"Scales are pressed for {options['sparsity_steps']} steps, and what is left is trained for "
        f"{training['steps']:,} at most{within}; the rest are defaults. One seed, or mean ± deviation over three. A "
        "WRN-16-2, the network of Zhu et al. 2020, is left out: there was no trained one, nor the data to train "
        "one to its published accuracy."
    )


def distilling_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one row for each kind of data and column of settings."""
    header = ["trained on", "settings", "steps", "minutes of training", "minutes of synthesis", "top-1"]
    rows = [
        ["teacher", "", "", "", "", f"{record['float']['teacher']:.2f}"],
        ["the same student, published weights", "", "", "", "", _published(record)],
    ]
    for row, columns in record["cells"].items():
        for label, cell in columns.items():
            seeds = list(cell.values())
            count = len(seeds)
            minutes, made = (sum(one[name] for one in seeds) / count / 60 for name in ("seconds", "synthesis_seconds"))
            steps, top = (sum(one[name] for one in seeds) / count for name in ("steps", "accuracy"))
            rows.append([row, label, f"{steps:.0f}", f"{minutes:.0f}", f"{made:.0f}", f"{top:.2f}"])
    return header, rows


def terms_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one row for each student and what was compared."""
    rows = [
        [student, compared, f"{cell['steps']}", f"{cell['accuracy']:.2f}"]
        for student, cells in record["students"].items()
        for compared, cell in sorted(cells.items(), key=lambda found: found[1]["accuracy"])
    ]
    return ["student", "compared", "steps", "top-1"], rows


def _published(record: dict[str, Any]) -> str:
    return f"{record['float']['student_trained_on_all_real_data']:.2f}"


def compression_sections(table: Any, origin: Any) -> list[str]:
    """Return the Markdown of both sections, without what has not been measured.

    Args:
        table: makes a Markdown table of header and rows.
        origin: makes the line that says where a result comes from.
    """
    parts: list[str] = []
    pruned = read_result("pruning-resnet20_cifar10")
    if pruned is not None and pruned["cells"]:
        text = (
            "### Pruned filters: ResNet-20 on CIFAR-10\n\nFilters inside the blocks go; the shortcuts, which pad "
            f"channels, tie the others. {_pruning_settings(pruned)} {pruned['test_samples']} images classified; "
            f"latency is the median of a forward pass in float32 on {pruned.get('latency_threads', 1)} processor(s).\n"
        )
        picture = "![Accuracy over MACs, data-free beside real data](images/pruning.svg)\n" if PLOT.is_file() else ""
        parts += [text, table(*pruning_table(pruned)), picture, origin(pruned)]
    distilled = read_result("distilling-resnet56-resnet20")
    if distilled is not None and distilled["cells"]:
        text = (
            "### Distilled students: ResNet-56 into a network of ResNet-20's size\n\nThe student begins with random "
            "weights or, *inherited*, with the first, middle and last block of each of the teacher's stages; one "
            "processor, one seed. *One hour* ran on another machine, without bf16 arithmetic, which takes half as "
            "many steps in a minute: compare within it. Synthetic sets hold as many samples as the row says, or "
            f"{distilled['samples']}; "
            f"{distilled['test_samples']} images "
            f"classified. {PUBLISHED}\n"
        )
        parts += [text, table(*distilling_table(distilled)), origin(distilled)]
    studied = read_result("distilling-terms")
    if studied is not None:
        text = (
            "### What a student should be compared in\n\nThe same teacher, "
            f"{studied['samples']} samples of `{studied['generator']}`, one processor, one seed. Features and "
            "attention maps are those that leave the stages; features of other channels are compared after the best "
            "linear map.\n"
        )
        parts += [text, table(*terms_table(studied)), origin(studied)]
    return [part for part in parts if part]
