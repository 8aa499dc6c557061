"""The content of a report, as plain data: sections of tables, samples, plots over layers, and facts.

Nothing here depends on HTML, matplotlib or the kind of run; commands fill these records, and `render` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from dfq_plugins.types import InputSpec

Cell = str | float | None
"""One entry of a table: a number, a string, or None if not measured."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers. The first cell of a row is its name.

    Args:
        columns: one header per cell, the first for the row names.
        rows: the cells, one per column in each row.
        groups: group headers with the number of columns that each spans, starting at the second column.
        caption: one sentence on how to read the table.
        notes: remarks below the table.
        highlighted: indices of the rows to highlight.
        decimals: number of decimals to show.
        folded: collapsed under the caption until clicked.

    Raises:
        UsageError: a row or the groups do not match the columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    caption: str = ""
    notes: tuple[str, ...] = ()
    highlighted: tuple[int, ...] = ()
    decimals: int = 2
    folded: bool = False

    def __post_init__(self) -> None:
        width = len(self.columns)
        if wrong := [row[0] for row in self.rows if len(row) != width]:
            raise UsageError(f"Each row needs one cell per column ({width}); these rows differ: {wrong}.")
        if self.groups and sum(span for _, span in self.groups) != width - 1:
            raise UsageError(
                f"The groups of a table must span all columns except the first ({width - 1}), got {self.groups}."
            )


@dataclass(frozen=True, eq=False)
class Samples:
    """Network inputs to show: images as pictures, signals as curves.

    Args:
        title: source of the samples.
        inputs: `(count, *spec.shape)` in network units, as float32.
        spec: input specification, to convert them to raw values.
        labels: one string per sample, or none.
        caption: one sentence on what they show.
    """

    title: str
    inputs: np.ndarray
    spec: InputSpec
    labels: tuple[str, ...] = ()
    caption: str = ""

    def __post_init__(self) -> None:
        if self.inputs.shape[1:] != self.spec.shape:
            raise UsageError(f"Samples of shape {self.spec.shape} expected, got {self.inputs.shape[1:]}.")
        if self.labels and len(self.labels) != len(self.inputs):
            raise UsageError(f"One label per sample expected: {len(self.inputs)} samples, {len(self.labels)} labels.")


@dataclass(frozen=True)
class LayerPlot:
    """One value per layer and series, layers from top to bottom.

    Args:
        layers: names of the layers from input to output.
        series: name and values of each series, in the order of the layers; NaN where unknown.
        axis: label of the value axis, with the unit.
        caption: one sentence on how to read the plot.
        logarithmic: whether the value axis is logarithmic; values at or below zero are then omitted.

    Raises:
        UsageError: a series does not have one value per layer.
    """

    layers: tuple[str, ...]
    series: tuple[tuple[str, tuple[float, ...]], ...]
    axis: str
    caption: str = ""
    logarithmic: bool = True

    def __post_init__(self) -> None:
        if wrong := [name for name, values in self.series if len(values) != len(self.layers)]:
            raise UsageError(f"Each series needs one value per layer ({len(self.layers)}); these differ: {wrong}.")


@dataclass(frozen=True)
class Curves:
    """One or more curves in one plot.

    Args:
        series: name, horizontal and vertical values of each curve; curves with the same name share a color.
        across: label of the horizontal axis.
        axis: label of the vertical axis, with the unit.
        caption: one sentence on how to read the plot.
        logarithmic: whether the vertical axis is logarithmic; values at or below zero are then omitted.

    Raises:
        UsageError: a curve's numbers of horizontal and vertical values differ.
    """

    series: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    across: str
    axis: str
    caption: str = ""
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if wrong := [name for name, across, values in self.series if len(across) != len(values)]:
            raise UsageError(f"Each curve needs one value per step; these differ: {wrong}.")


@dataclass(frozen=True)
class Facts:
    """Names with their values: settings, versions, locations.

    Args:
        entries: pairs of name and value.
        title: heading of the list.
        folded: collapsed under the title until clicked.
    """

    entries: tuple[tuple[str, str], ...]
    title: str = ""
    folded: bool = False


Block = Table | Samples | LayerPlot | Curves | Facts


@dataclass(frozen=True, eq=False)
class Section:
    """A heading, explanatory paragraphs for a first-time reader, and the blocks to show."""

    title: str
    text: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
