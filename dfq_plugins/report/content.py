"""What a report holds, in plain data: sections of tables, samples, plots over layers, and facts.

Nothing here knows HTML, matplotlib or the kind of run; any command fills these records, and `render` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from dfq_plugins.types import InputSpec

Cell = str | float | None
"""One entry of a table: a number, a text, or None for 'not measured'."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers. The first cell of a row names it.

    Args:
        columns: one header per cell, the first over the row names.
        rows: the cells, as many in each row as there are columns.
        groups: headers over the headers, each with the number of columns that it spans, from the second column on.
        caption: one sentence on how to read the table.
        notes: remarks under the table.
        highlighted: positions of the rows that the reader should see first.
        decimals: digits shown of each number.
        folded: shown on a click only, under the caption.

    Raises:
        UsageError: a row or the groups do not fit the columns.
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
            raise UsageError(f"The groups of a table span all columns but the first ({width - 1}), got {self.groups}.")


@dataclass(frozen=True, eq=False)
class Samples:
    """Network inputs to look at: pictures where they are images, curves where they are signals.

    Args:
        title: where they come from.
        inputs: `(count, *spec.shape)` in network units, as float32.
        spec: takes them back to raw values.
        labels: one text per sample, or none.
        caption: one sentence on what to see.
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
        axis: what the values are, with their unit.
        caption: one sentence on how to read the plot.
        logarithmic: whether the axis is; values at or below zero are then left out.

    Raises:
        UsageError: a series has not one value per layer.
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
    """Values that change along one axis, several runs of it in one plot.

    Args:
        series: name, horizontal and vertical values of each curve; curves of one name share its color.
        across: what the horizontal axis counts.
        axis: what the values are, with their unit.
        caption: one sentence on how to read the plot.
        logarithmic: whether the vertical axis is; values at or below zero are then left out.

    Raises:
        UsageError: a curve has not as many vertical values as horizontal ones.
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
    """Names with their values: settings, versions, places.

    Args:
        entries: pairs of name and value.
        title: heading over them.
        folded: shown on a click only, under the title.
    """

    entries: tuple[tuple[str, str], ...]
    title: str = ""
    folded: bool = False


Block = Table | Samples | LayerPlot | Curves | Facts


@dataclass(frozen=True, eq=False)
class Section:
    """A heading, paragraphs for someone who sees such a thing for the first time, and what there is to show."""

    title: str
    text: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
