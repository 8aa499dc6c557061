"""The demo's measurements, as records, as text and as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.quality.fidelity import Fidelity
    from dfq_plugins.types import Artifact, Coverage, RejectedArtifact

NOT_MEASURED = "-"


@dataclass(frozen=True)
class Measurement:
    """One quantized network and its top-1 accuracy on the held-out digits.

    Args:
        source: name of the calibration data.
        calibrator: name of the framework's adapter.
        recipe: bit widths, e.g. "w8a8".
        accuracy: accuracy in percent; None if the network was not quantized.
        coverage: the quantized layers.
        refusal: why there is no accuracy.
        fidelity: noise by layer, if measured.
    """

    source: str
    calibrator: str
    recipe: str
    accuracy: float | None
    coverage: Coverage | None = None
    refusal: str = ""
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class DemoResult:
    """The result of a demo run.

    Args:
        output: the folder with the synthetic data sets, the artifacts and the report.
        float_accuracy: top-1 accuracy of the float network on the held-out digits, in percent.
        held_out: number of held-out digits.
        sources: names of the calibration data, the rows of the table.
        columns: calibrator and recipe of each column of the table.
        default: name of the default generator's data.
        measurements: all cells of the table.
        artifacts: the deployment files, each with the calibrator that wrote it.
        rejected: the exports that failed, each with its calibrator and the reason.
        report: the HTML page.
        seconds: wall time of the run.
    """

    output: Path
    float_accuracy: float
    held_out: int
    sources: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    default: str
    measurements: tuple[Measurement, ...]
    artifacts: tuple[tuple[str, Artifact], ...]
    rejected: tuple[tuple[str, RejectedArtifact], ...]
    report: Path
    seconds: float

    def accuracy(self, source: str, calibrator: str, recipe: str) -> float | None:
        """Return the accuracy of one cell in percent, or None if it was not measured."""
        wanted = (source, calibrator, recipe)
        found = (cell.accuracy for cell in self.measurements if (cell.source, cell.calibrator, cell.recipe) == wanted)
        return next(found, None)

    def row(self, source: str) -> tuple[float | None, ...]:
        """Return the accuracies of one source, column by column."""
        return tuple(self.accuracy(source, calibrator, recipe) for calibrator, recipe in self.columns)

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """The calibrators in column order, each with its number of columns."""
        names = [calibrator for calibrator, _ in self.columns]
        return tuple((name, names.count(name)) for name in dict.fromkeys(names))

    @property
    def refusals(self) -> tuple[str, ...]:
        """The reasons for empty cells, without duplicates."""
        reasons = ((f"{cell.calibrator} {cell.recipe}: {cell.refusal}") for cell in self.measurements if cell.refusal)
        return tuple(dict.fromkeys(reasons))

    def as_dict(self) -> dict[str, Any]:
        """Return the result in JSON types, with paths relative to the output folder."""
        return {
            "float_accuracy": self.float_accuracy,
            "held_out": self.held_out,
            "default": self.default,
            "measurements": [
                {
                    "source": cell.source,
                    "calibrator": cell.calibrator,
                    "recipe": cell.recipe,
                    "accuracy": cell.accuracy,
                    "refusal": cell.refusal,
                }
                for cell in self.measurements
            ],
            "artifacts": [
                {
                    "calibrator": calibrator,
                    "path": artifact.path.relative_to(self.output).as_posix(),
                    "format": artifact.format,
                    "size_bytes": artifact.size_bytes,
                    "checks": [{"name": check.name, "detail": check.detail} for check in artifact.checks],
                }
                for calibrator, artifact in self.artifacts
            ],
            "rejected": [
                {
                    "calibrator": calibrator,
                    "name": artifact.name,
                    "reason": artifact.reason,
                    "faults": [*artifact.faults],
                }
                for calibrator, artifact in self.rejected
            ],
            "output": str(self.output),
            "report": self.report.relative_to(self.output).as_posix(),
            "seconds": round(self.seconds, 1),
        }

    def render_text(self) -> str:
        """Return the table, the reasons for its gaps, and the location of the files, as plain text."""
        lines = [f"Top-1 accuracy in percent on {self.held_out} held-out digits", "", *self._table()]
        lines += [""] + [f"{NOT_MEASURED} {reason}" for reason in self.refusals] if self.refusals else []
        lines += ["", f"Synthetic data and artifacts: {self.output}"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        width = max(map(len, (*self.sources, "calibrated on"))) + 2
        spans = [max(len(name) + 2, 8 * count) for name, count in self.groups]
        widths = [span // count for span, (_, count) in zip(spans, self.groups, strict=True) for _ in range(count)]
        head = " " * width + "".join(f"{name:>{span}}" for span, (name, _) in zip(spans, self.groups, strict=True))
        names = [recipe.upper() for _, recipe in self.columns]
        floats = [f"{self.float_accuracy:.2f}"] * len(self.columns)
        rows = [("calibrated on", names), ("float network", floats)]
        rows += [(source, [_number(value) for value in self.row(source)]) for source in self.sources]
        return [head] + [
            f"{name:<{width}}" + "".join(f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
            for name, cells in rows
        ]


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"
