"""Draws docs/images/quality.png and fills the tables of docs/quality.md from the study's JSON results.

python tests/benchmarks/render_quality.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import read_result
from matplotlib.figure import Figure
from quality import RECIPES, result_name
from render import origin, table

from dfq_plugins.quality.verdict import ENOUGH_FOR_W4A4, ENOUGH_FOR_W8A8

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURE = ROOT / "docs" / "quality.md", ROOT / "docs" / "images" / "quality.png"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
TITLES = {
    "resnet20_cifar10": "ResNet-20, CIFAR-10",
    "resnet56_cifar10": "ResNet-56, CIFAR-10",
    "dscnn_kws_mlperftiny": "DS-CNN, spoken keywords",
    "digits": "the demo's digits network",
}
KINDS = (
    ("real", "#2b8a94", "o"),
    ("corrupted or foreign", "#9a7400", "v"),
    ("noise", "#6b7280", "s"),
    ("bns, few iterations", "#c4501b", "^"),
    ("bns", "#1a6dbb", "o"),
    ("inception", "#8447b8", "D"),
    ("bns+inception", "#bd3a78", "P"),
)
FIGURES = ("score", "surprise", "range_error", "divergence", "diversity", "label_balance", "confidence", "clamped")
LOWER_IS_BETTER = {"surprise", "range_error", "divergence", "clamped"}


def kind_of(name: str) -> str:
    """Return which kind of set a name stands for."""
    corrupted = ("contrast", "brighter", "shuffled", "sample", "foreign", "mean value")
    if any(word in name for word in corrupted):
        return "corrupted or foreign"
    if name.startswith(("gaussian", "uniform")):
        return "noise"
    if "iterations" in name and "100" not in name:
        return "bns, few iterations"
    return next(kind for kind in ("bns+inception", "inception", "bns", "real") if name.startswith(kind))


def results() -> dict[str, dict[str, Any]]:
    """Return the result of each network that was measured."""
    found = {network: read_result(result_name(network)) for network in RECIPES}
    return {network: record for network, record in found.items() if record is not None and "spearman" in record}


def draw(records: dict[str, dict[str, Any]]) -> None:
    """Draw accuracy over score, one panel per network."""
    figure = Figure(figsize=(4.2 * len(records), 4.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    for axes, (network, record) in zip(panels, records.items(), strict=True):
        for kind, color, marker in KINDS:
            points = [
                (entry["inspection"]["score"], entry["accuracy"])
                for name, entry in record["sets"].items()
                if kind_of(name) == kind
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), color=color, marker=marker, s=26, label=kind, alpha=0.85)
        axes.axhline(record["float"], color="#9aa3af", linewidth=1, linestyle=":")
        for threshold in (ENOUGH_FOR_W8A8, ENOUGH_FOR_W4A4):
            axes.axvline(threshold, color="#9aa3af", linewidth=1, linestyle="--")
        rank = record["spearman"]["score"]
        axes.set_title(f"{TITLES[network]}, {record['recipe'].upper()}\nSpearman {rank:.2f}", fontsize=10)
        axes.set_xlabel("score of dfq inspect")
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("top-1 after calibration, %")
    panels[0].legend(fontsize=8, loc="lower right")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Software": ""})


def correlation_table(records: dict[str, dict[str, Any]]) -> str:
    """Return the rank correlations, signed so that 1 is a perfect prediction."""
    rows = [
        [
            figure.replace("_", " "),
            *(
                f"{(-1 if figure in LOWER_IS_BETTER else 1) * record['spearman'][figure]:.2f}"
                if figure in record["spearman"]
                else "-"
                for record in records.values()
            ),
        ]
        for figure in FIGURES
    ]
    columns = [
        f"{TITLES[network]}, {record['recipe']} ({len(record['sets'])} sets)" for network, record in records.items()
    ]
    return table(["figure", *columns], rows)


def sets_table(network: str, record: dict[str, Any]) -> str:
    """Return every set of a network, the best score first."""
    ordered = sorted(record["sets"].items(), key=lambda item: -item[1]["inspection"]["score"])
    rows = [
        [
            name,
            f"{entry['inspection']['score']:.0f}",
            f"{entry['inspection']['surprise']:.3f}",
            f"{entry['inspection']['range_error']:.3f}",
            f"{entry['accuracy']:.2f}",
        ]
        for name, entry in ordered
    ]
    head = (
        f"### {TITLES[network]}\n\n{record['calibrator']} {record['recipe']}, {record['test_samples']} test samples, "
        f"float {record['float']:.2f}%.\n"
    )
    return "\n".join(
        [head, table(["set, samples", "score", "surprise", "range error", "top-1 %"], rows), origin(record)]
    )


def main() -> None:
    """Write the picture, and the tables between the page's marks."""
    records = results()
    draw(records)
    text = "\n".join([correlation_table(records), *(sets_table(*item) for item in records.items())])
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
    print(f"wrote {PAGE.name} and {PICTURE.name}")


if __name__ == "__main__":
    main()
