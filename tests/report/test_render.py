"""The report: self-contained, escaped, complete, readable in both color schemes, written whole or not at all."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.report import plots, sections
from dfq_plugins.report.content import Facts, LayerPlot, Samples, Section, Table
from dfq_plugins.report.render import Report, render_html, render_report
from dfq_plugins.types import Artifact, Check, Coverage, InputSpec, NumberFormat, QuantizedTensor

GRAY = InputSpec((1, 8, 8), (0.5,), (0.25,), (0.0, 1.0), 10)
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Collects ids, links, sources and text, and fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text += data


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


@pytest.fixture
def report() -> Report:
    """A report with every kind of block."""
    table = Table(
        ("Data", "w8a8", "w4a4"),
        (("real", 99.5, None), ("bns <b>", 99.25, 97.125)),
        groups=(("torch-ao", 2),),
        caption="Top-1 in percent.",
        notes=("w4a4 was refused",),
        highlighted=(1,),
    )
    plot = LayerPlot(("input", "a$x$_b", "c.1"), (("real", (1e-3, 0.0, 0.1)), ("bns", (0.01, float("nan"), 1))), "KL")
    int8 = NumberFormat(8, signed=True, symmetric=True, per_channel=False, stored_bits=8)
    coverage = Coverage((QuantizedTensor("conv", "Conv2d", "weight", int8),), (("pool", "no kernel"),))
    artifact = Artifact(Path("out/w8a8/model.onnx"), "QCDQ", 2048, (Check("onnxruntime", "top-1 agreement 100 %"),))
    parts = (
        Section("Result & cost", ("Read this.",), (table,)),
        sections.sample_section([Samples("digits", noise(3, 1, 8, 8), GRAY, ("0", "1", "<2>"))]),
        sections.divergence_section(plot.layers, dict(plot.series)),
        sections.coverage_section([("torch-ao w8a8", coverage)]),
        sections.artifact_section([("torch-ao", artifact)], Path("out")),
        sections.settings_section({"Input": sections.input_facts(GRAY), "Run": {"seed": 7, "options": {"steps": 3}}}),
    )
    return Report("A <run>", ("Hello.",), (("99 %", "float"),), parts, "dfq-plugins")


def test_page_nests_and_has_unique_ids_and_no_dangling_link(report: Report) -> None:
    page = Page(render_html(report))
    assert len(page.ids) == len(set(page.ids))
    links = [value[1:] for name, value in page.attributes if name in {"href", "xlink:href"}]
    assert links
    assert set(links) <= set(page.ids)
    assert {found for _, value in page.attributes for found in re.findall(r"url\(#(.+?)\)", value)} <= set(page.ids)


def test_page_needs_nothing_else(report: Report) -> None:
    html = render_html(report)
    page = Page(html)
    sources = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "action", "data"}]
    assert all(value.startswith(("data:", "#")) for value in sources)
    assert "<script" not in html
    assert "@import" not in html
    assert "url(http" not in html
    assert "default-src 'none'" in html


def test_text_is_escaped(report: Report) -> None:
    html = render_html(report)
    assert "<b>" not in html
    assert "bns &lt;b&gt;" in html
    assert "<title>A &lt;run&gt;</title>" in html
    assert "<2>" not in html


def test_page_shows_everything_that_the_records_hold(report: Report) -> None:
    text = Page(render_html(report)).text
    for expected in (
        *("99.50", "97.12", "\N{EN DASH}", "w4a4 was refused", "torch-ao", "Top-1 in percent."),
        *("torch-ao w8a8: 1 layers quantized, 1 left in float", "In float: pool (no kernel)", "int8"),
        *("w8a8/model.onnx", "QCDQ", "2.0 KiB", "checked: onnxruntime", "top-1 agreement 100 %"),
        *("1 \N{MULTIPLICATION SIGN} 8 \N{MULTIPLICATION SIGN} 8", "seed", "steps", "Versions", "torch", "a$x$_b"),
    ):
        assert expected in text


def test_page_follows_the_color_scheme(report: Report) -> None:
    html = render_html(report)
    assert "prefers-color-scheme: dark" in html
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 2  # one for wide and one for narrow screens
    for drawing in drawings:
        fixed = set(re.findall(r"#[0-9a-f]{6}", drawing))
        assert fixed <= {"#000000", "#ffffff"}, fixed  # matplotlib's own defaults, invisible or overridden
        assert "var(--series-0)" in drawing
        assert "var(--muted)" in drawing


def test_tables_scroll_and_can_be_reached_by_keyboard(report: Report) -> None:
    assert '<div class="scroll" tabindex="0" role="region" aria-label="Top-1 in percent.">' in render_html(report)


@pytest.mark.slow
def test_rendering_is_repeatable_and_leaves_matplotlib_as_it_was(report: Report) -> None:
    before = dict(mpl.rcParams)
    assert render_html(report) == render_html(report)
    assert dict(mpl.rcParams) == before


def test_pictures_show_raw_values() -> None:
    inputs = np.zeros((2, 1, 8, 8), np.float32)
    inputs[0, 0, 0, 0], inputs[0, 0, 7, 7] = -2.0, 2.0  # raw 0 and 1
    [(kind, uri), (_, gray)] = plots.sample_pictures(Samples("x", inputs, GRAY), "p")
    assert kind == "png"
    assert pixels(uri)[[0, 7, 4], [0, 7, 4]].tolist() == [0, 255, 128]
    assert (pixels(gray) == 128).all()


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_three_channels_are_shown_in_color_in_their_order() -> None:
    inputs = np.stack([np.full((4, 6), value, np.float32) for value in (0.0, 0.5, 1.0)])[None]
    samples = Samples("rgb", inputs, InputSpec((3, 4, 6), value_range=(0.0, 1.0)))
    [(_, uri)] = plots.sample_pictures(samples, "p")
    assert pixels(uri).shape == (4, 6, 3)
    assert pixels(uri)[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 224, 224), (128, 128)), ((5, 49, 10), (49, 10)), ((1, 6, 9, 9), (9, 9))]
)
def test_large_pictures_are_reduced_and_odd_inputs_still_shown(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    [(kind, uri)] = plots.sample_pictures(Samples("x", noise(1, *shape), InputSpec(shape)), "p")
    assert kind == "png"
    assert pixels(uri).shape[:2] == size


@pytest.mark.parametrize(("shape", "curves"), [((2, 100), 2), ((40,), 1)])
def test_signals_are_drawn_as_curves(shape: tuple[int, ...], curves: int) -> None:
    [(kind, markup)] = plots.sample_pictures(Samples("x", noise(1, *shape), InputSpec(shape)), "p")
    assert kind == "svg"
    assert markup.count("var(--series-") == curves


def test_unbounded_values_that_are_all_equal_or_not_finite_still_give_a_picture() -> None:
    inputs = np.full((1, 1, 4, 4), np.nan, np.float32)
    [(_, uri)] = plots.sample_pictures(Samples("x", inputs, InputSpec((1, 4, 4))), "p")
    assert (pixels(uri) == 0).all()


def test_plot_leaves_out_zero_and_unknown_values() -> None:
    plot = LayerPlot(("a", "b"), (("x", (0.0, float("nan"))),), "KL")
    assert "<svg" in plots.layer_plot_svg(plot, "p")


def test_narrow_plot_shortens_long_names_from_the_front() -> None:
    name = "features.denseblock4.denselayer16.norm2"
    plot = LayerPlot((name,), (("x", (0.5,)),), "KL")
    assert f">{name}<" in plots.layer_plot_svg(plot, "p")
    assert ">…denselayer16.norm2<" in plots.layer_plot_svg(plot, "p", narrow=True)


def test_folded_facts_are_in_details() -> None:
    blocks = (Facts((("a", "b"),), "Hidden", folded=True), Facts((("c", "d"),), "Shown"))
    html = render_html(Report("x", (), sections=(Section("s", (), blocks),)))
    assert "<details><summary>Hidden</summary>" in html
    assert "<h3>Shown</h3>" in html


def test_report_replaces_an_older_one(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert render_report(report, path) == path
    render_report(Report("second", ()), path)
    assert "second" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_report_that_cannot_be_written_says_so(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(DataError, match=r"report\.html could not be written .*Choose another"):
        render_report(report, tmp_path / "report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Table(("a", "b"), (("row",),)), r"one cell per column \(2\).*'row'"),
        (lambda: Table(("a", "b"), (), groups=(("g", 2),)), r"all columns except the first \(1\)"),
        (lambda: LayerPlot(("a",), (("bns", ()),), "KL"), r"one value per layer \(1\).*'bns'"),
        (lambda: Samples("x", noise(1, 1, 4, 4), GRAY), r"\(1, 8, 8\) expected, got \(1, 4, 4\)"),
        (lambda: Samples("x", noise(2, 1, 8, 8), GRAY, ("1",)), "2 samples, 1 labels"),
    ],
)
def test_records_that_do_not_fit_are_refused(build: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()  # type: ignore[operator]


def test_versions_name_what_is_installed() -> None:
    entries = dict(sections.versions().entries)
    assert entries["torch"]
    assert set(entries) <= {"Python", "Machine", *sections.LIBRARIES}
