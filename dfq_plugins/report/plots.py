"""Pictures of samples and plots over layers as inline SVG and PNG, readable on light and dark pages.

Plots are drawn once in placeholder colors, which become CSS variables of the page, so one drawing follows the reader's
color scheme. Figures are built as objects: pyplot and its global state are not used.
"""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from dfq_plugins.data.notebook import raw_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from dfq_plugins.report.content import LayerPlot, Samples

POINTS_PER_INCH = 72
"""matplotlib's SVG unit is the point; at this resolution, one unit is one pixel of the page."""

INK, FAINT = "#010001", "#010002"
SERIES = tuple(f"#0100{index:02x}" for index in range(16, 24))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LEGEND_SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
"""The markers as text, for the legend."""

VARIABLES = {INK: "var(--muted)", FAINT: "var(--line)"} | {
    color: f"var(--series-{index})" for index, color in enumerate(SERIES)
}

LARGEST_PICTURE = 128
"""Maximum side of an embedded picture in pixels; larger inputs are downscaled to keep the page small."""

SHORT_SPAN = 100.0
"""Ratio of a logarithmic axis's limits below which powers of ten would give too few ticks."""

DECADE = 10.0

LONGEST_LABEL = {True: 20, False: 44}
"""Number of characters of a layer's name that fit next to a narrow and a wide plot."""


def svg_markup(figure: Figure, name: str) -> str:
    """Return the figure as `<svg>` markup in the page's colors, its ids prefixed with `name`."""
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": None}
    with mpl.rc_context(settings):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    for placeholder, variable in VARIABLES.items():
        markup = markup.replace(placeholder, variable)
    markup = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", markup)
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", markup, count=1)


def shortened(name: str, length: int) -> str:
    """Shorten a long name at the front, since its end distinguishes layers.

    >>> shortened("features.denseblock4.denselayer16.norm2", 20)
    '…denselayer16.norm2'
    """
    if len(name) <= length:
        return name
    tail = name[-(length - 1) :]
    return "…" + (tail.partition(".")[2] if "." in tail[:-4] else tail)


def set_log_ticks(axis: Axis, limits: tuple[float, float], most: int) -> None:
    """Set the ticks of a logarithmic axis: powers of ten, or also plain numbers between them on a short axis."""
    span = limits[1] / limits[0]
    short = span < SHORT_SPAN
    between = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if span < DECADE else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=between if short else (1.0,), numticks=most))
    axis.set_minor_locator(NullLocator())
    if short:
        axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))


def draw_axes(axes: Axes, plot: LayerPlot, *, narrow: bool) -> None:
    """Set scale, ticks and grid of a plot over layers."""
    if plot.logarithmic and any(value > 0 for _, values in plot.series for value in values):
        axes.set_xscale("log", nonpositive="mask")
        set_log_ticks(axes.xaxis, axes.get_xlim(), 5 if narrow else 9)
    labels = [shortened(name, LONGEST_LABEL[narrow]) for name in plot.layers]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(plot.axis, color=INK, parse_math=False)
    axes.tick_params(colors=INK, which="both", length=0)
    axes.grid(color=FAINT, linewidth=1)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def layer_plot_svg(plot: LayerPlot, name: str, *, narrow: bool = False) -> str:
    """Return a plot with layers from top to bottom and values from left to right, as SVG markup.

    Args:
        plot: the plot to draw.
        name: prefix of the SVG ids, unique on the page.
        narrow: sized for a phone (350 units wide) rather than a desktop (760 units wide).
    """
    width, size, row = (350, 11, 19) if narrow else (760, 13, 24)
    with mpl.rc_context({"font.size": size}):
        height = 64 + row * len(plot.layers)
        figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), layout="constrained")
        axes = figure.add_subplot()
        for index, (_, values) in enumerate(plot.series):
            color, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            axes.plot(values, range(len(values)), color=color, marker=marker, markersize=size / 2, linewidth=1.2)
        draw_axes(axes, plot, narrow=narrow)
        return svg_markup(figure, name)


def png_uri(picture: np.ndarray) -> str:
    """Return a picture `(height, width)` or `(height, width, 3)` of values from 0 to 1 as a PNG data URI."""
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    if max(image.size) > LARGEST_PICTURE:
        image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def signal_svg(signal: np.ndarray, name: str) -> str:
    """Return a signal `(channels, length)` of values from 0 to 1 as small curves, one per channel."""
    figure = Figure(figsize=(160 / POINTS_PER_INCH, 80 / POINTS_PER_INCH))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for index, channel in enumerate(signal[: len(SERIES)]):
        axes.plot(channel, color=SERIES[index], linewidth=1)
    axes.set_ylim(-0.05, 1.05)
    axes.set_axis_off()
    return svg_markup(figure, name)


def as_picture(sample: np.ndarray) -> np.ndarray:
    """Return the picture of one sample `(channels, ...)`.

    Three channels are shown as RGB; otherwise, the first channel is shown in gray.
    For a volume `(channels, depth, height, width)`, the middle slice is shown.
    """
    while sample.ndim > 3:  # noqa: PLR2004  channels, height, width
        sample = sample[:, sample.shape[1] // 2]
    return sample.transpose(1, 2, 0) if len(sample) == 3 else sample[0]  # noqa: PLR2004  red, green, blue


def sample_pictures(samples: Samples, name: str) -> Sequence[tuple[str, str]]:
    """Return kind ('png' or 'svg') and content (data URI or markup) of the picture of each sample."""
    values = raw_values(samples.inputs, samples.spec)
    if len(samples.spec.shape) == 2:  # noqa: PLR2004  channels, length
        return [("svg", signal_svg(signal, f"{name}-{index}")) for index, signal in enumerate(values)]
    if len(samples.spec.shape) == 1:
        return [("svg", signal_svg(vector[None], f"{name}-{index}")) for index, vector in enumerate(values)]
    return [("png", png_uri(as_picture(sample))) for sample in values]
