"""The sections of docs/benchmarks.md on pruned and distilled networks, from their JSON results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import read_result
from render_tables import figure

PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "pruning.svg"


PUBLISHED = (
    "Published figures for CIFAR-10, after hours on GPUs (Fang et al. 2021, arXiv 2105.08584, table 1; first adaptive "
    "DeepInversion, then CMI; in brackets the student trained on all real data): WRN-40-2 (94.87) into WRN-16-1 83.01, "
    "90.01 (91.12); ResNet-34 (95.70) into ResNet-18 93.26, 94.84 (95.20)."
)
"""Other networks than ours, so only the distance from the student's figure on real data is comparable."""


def pruning_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one row for each share of the MACs and each kind of data."""
    header = ["MACs", "trained on", "parameters", "MACs, M", "ms, batch 1", "ms, batch 100", "top-1"]
    whole = record["float"]
    rows = [["100%", "whole network", *_figures([whole])]]
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
        f"Scales are penalized for {options['sparsity_steps']} steps, then the pruned network is trained for at most "
        f"{training['steps']:,}{within}; all other settings are defaults. One seed, or mean ± standard deviation over "
        "three. WRN-16-2, the network of Zhu et al. 2020, is not included: neither a trained one was available, nor "
        "the data to train one to its published accuracy."
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
            "### Pruned filters: ResNet-20 on CIFAR-10\n\nFilters inside the blocks are removed; the shortcuts, which "
            f"pad channels, tie the others. {_pruning_settings(pruned)} Tested on {pruned['test_samples']} images; "
            f"latency is the median of a forward pass in float32 on {pruned.get('latency_threads', 1)} processor(s).\n"
        )
        link = "![Accuracy over MACs, data-free compared with real data](images/pruning.svg)\n"
        picture = link if PLOT.is_file() else ""
        parts += [text, table(*pruning_table(pruned)), picture, origin(pruned)]
    distilled = read_result("distilling-resnet56-resnet20")
    if distilled is not None and distilled["cells"]:
        text = (
            "### Distilled students: ResNet-56 into a network of ResNet-20's size\n\nThe student starts from random "
            "weights or, *inherited*, from the first, middle and last block of each of the teacher's stages; one "
            "processor, one seed. *One hour* ran on another machine without bf16 arithmetic, which takes half as "
            "many steps per minute, so compare these rows only with each other. Synthetic sets have the number of "
            f"samples in the row's name, otherwise {distilled['samples']}. "
            f"Tested on {distilled['test_samples']} images. "
            f"{PUBLISHED}\n"
        )
        parts += [text, table(*distilling_table(distilled)), origin(distilled)]
    studied = read_result("distilling-terms")
    if studied is not None:
        text = (
            "### What to compare a student in\n\nThe same teacher, "
            f"{studied['samples']} samples of `{studied['generator']}`, one processor, one seed. Features and "
            "attention maps are the outputs of the stages; if the channels differ, features are compared after the "
            "best linear map.\n"
        )
        parts += [text, table(*terms_table(studied)), origin(studied)]
    return [part for part in parts if part]
