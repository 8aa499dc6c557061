"""Writes a report as one self-contained HTML file: no network access, no scripts, no other files."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from dfq_plugins.report import curves, plots
from dfq_plugins.report.content import Curves, Facts, LayerPlot, Samples, Section, Table
from dfq_plugins.storage.files import create_folder, write_atomically

if TYPE_CHECKING:
    from dfq_plugins.report.content import Block, Cell

NOT_MEASURED = "\N{EN DASH}"

KINDS = {Table: "table", Samples: "samples", LayerPlot: "plot", Curves: "plot", Facts: "facts"}


def format_cell(cell: Cell, decimals: int) -> str:
    """Return a cell as text, a dash if there is no number.

    >>> format_cell(98.765, 1), format_cell("int8", 1)
    ('98.8', 'int8')
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return NOT_MEASURED
    return f"{cell:.{decimals}f}" if isinstance(cell, float) else str(cell)


def anchor(title: str) -> str:
    """Return the title as an id for links.

    >>> anchor("What is *not* quantized?")
    'what-is-not-quantized'
    """
    return "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())


def columns(table: Table) -> list[list[Cell]]:
    """Return the cells of a table column by column."""
    return [[row[index] for row in table.rows] for index in range(len(table.columns))]


def block_context(block: Block, name: str) -> dict[str, object]:
    """Return the template context of a block; `name` prefixes its ids."""
    context: dict[str, object] = {"kind": KINDS[type(block)], "block": block}
    if isinstance(block, Table):
        context["numeric"] = [any(isinstance(cell, int | float) for cell in cells) for cells in columns(block)]
    if isinstance(block, LayerPlot | Curves):
        draw = plots.layer_plot_svg if isinstance(block, LayerPlot) else curves.curves_svg
        context["wide"] = Markup(draw(block, f"{name}-wide"))  # type: ignore[arg-type]  # noqa: S704  by matplotlib
        context["narrow"] = Markup(draw(block, f"{name}-narrow", narrow=True))  # type: ignore[arg-type]  # noqa: S704
        labels = dict.fromkeys(series[0] for series in block.series)
        context["legend"] = [
            (plots.LEGEND_SIGNS[index % len(plots.LEGEND_SIGNS)], index % len(plots.SERIES), label)
            for index, label in enumerate(labels)
        ]
        context["what"] = f"{block.axis} by {'layer' if isinstance(block, LayerPlot) else block.across}"
    if isinstance(block, Samples):
        pictures = plots.sample_pictures(block, name)
        context["pictures"] = [(kind, Markup(content)) for kind, content in pictures]  # noqa: S704  made in plots
    return context


def render_html(report: Report) -> str:
    """Return the report as an HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"format_cell": format_cell, "anchor": anchor}
    number = count()
    contents = [[block_context(block, f"b{next(number)}") for block in section.blocks] for section in report.sections]
    sections = list(zip(report.sections, contents, strict=True))
    return environment.get_template("template.html.j2").render(report=report, sections=sections)


def render_report(report: Report, path: Path) -> Path:
    """Write the report to `path` atomically, and return the path.

    Raises:
        DataError: the file cannot be written.
    """
    html = render_html(report)
    create_folder(path.parent)
    write_atomically(path, html.encode())
    return path


@dataclass(frozen=True, eq=False)
class Report:
    """A complete page.

    Args:
        title: heading of the page.
        introduction: paragraphs for a reader who is new to the project.
        figures: the key figures, each with its meaning.
        sections: sections of the page in order.
        footer: origin of the page: program, version, date.
    """

    title: str
    introduction: tuple[str, ...]
    figures: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = ()
    footer: str = ""

    def _repr_html_(self) -> str:
        """Return the page as a frame, for notebooks."""
        page = html.escape(render_html(self), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0" title="report"></iframe>'
