"""Curves over steps, such as losses, as inline SVG in the page's colors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dfq_plugins.report.plots import FAINT, INK, POINTS_PER_INCH, SERIES, set_log_ticks, svg_markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dfq_plugins.report.content import Curves

NARROW, WIDE = (350, 240, 11), (760, 300, 13)
"""Width, height and font size in pixels."""


def curves_svg(plot: Curves, name: str, *, narrow: bool = False) -> str:
    """Return the curves as SVG markup.

    Args:
        plot: the curves to draw.
        name: prefix of the SVG ids, unique on the page.
        narrow: sized for a phone (350 units wide) rather than a desktop (760 units wide).
    """
    width, height, size = NARROW if narrow else WIDE
    colors: dict[str, str] = {}
    with mpl.rc_context({"font.size": size}):
        figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), layout="constrained")
        axes = figure.add_subplot()
        for label, across, values in plot.series:
            color = colors.setdefault(label, SERIES[len(colors) % len(SERIES)])
            marker = "o" if len(values) == 1 else ""
            axes.plot(across, values, color=color, linewidth=1.2, marker=marker, markersize=size / 3)
        _draw_axes(axes, plot, narrow=narrow)
        return svg_markup(figure, name)


def _draw_axes(axes: Axes, plot: Curves, *, narrow: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9, integer=True))
    if plot.logarithmic and any(value > 0 for _, _, values in plot.series for value in values):
        axes.set_yscale("log", nonpositive="mask")
        set_log_ticks(axes.yaxis, axes.get_ylim(), 8)
    axes.set_xlabel(plot.across, color=INK, parse_math=False)
    axes.set_ylabel(plot.axis, color=INK, parse_math=False)
    axes.tick_params(colors=INK, which="both", length=0)
    axes.grid(color=FAINT, linewidth=1)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
