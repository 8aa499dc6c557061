"""`--report`: what the pages of a synthesis, a quantization and an inspection hold, from the command line on."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from dfq_plugins.cli import cli
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.quality.fidelity import Fidelity, LayerFidelity
from dfq_plugins.report import quality
from dfq_plugins.report.content import Curves
from dfq_plugins.report.curves import curves_svg
from dfq_plugins.report.fidelity import calibration_section, noise_section
from dfq_plugins.report.history import MOST_CURVES, History, loss_curves
from dfq_plugins.report.render import Report
from dfq_plugins.report.runs import calibration_part, held_out_part, held_out_samples
from dfq_plugins.types import Coverage, ProgressEvent

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

NETWORK = """
import torch
from torch import nn

def network(norm=True):
    rng = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*(layers if norm else layers[:1] + layers[2:]), nn.Linear(4, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
        if norm:
            model[1].running_mean += torch.rand(4, generator=rng)
            model[1].running_var *= 0.5
    return model

def other():
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    return model

def folded():
    return network(norm=False)
"""
SPEC = ["--shape", "3,8,8", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--value-range", "0,1"]
SPEC += ["--num-classes", "5"]


class Text(HTMLParser):
    """Collects the visible text and every address on a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.addresses, self.headings, self._open = "", [], [], ""  # type: ignore[var-annotated]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_data(self, data: str) -> None:
        if self._open == "h2":
            self.headings.append(data.strip())
        if self._open not in {"style", "script"}:
            self.text += data

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002  the base class gives it
        self._open = ""


def page(path: Path) -> Text:
    html = path.read_text(encoding="utf-8")
    found = Text(html)
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert "<script" not in html
    return found


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, a set of 24 samples made from it, and the page of its synthesis."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "net.py").write_text(NETWORK)
    options = ["-n", 24, "--batch-size", 16, "-O", "iterations=25", "-O", "compile=never", *SPEC]
    run("synthesize", f"{folder}/net.py:network", "-o", folder / "set", *options, "--report", folder / "made.html")
    return folder


@pytest.mark.slow
def test_the_page_of_a_synthesis_has_every_part(made: Path) -> None:
    found = page(made / "made.html")
    assert found.headings == [
        "Is the set good enough?",
        "What the samples look like",
        "How close it comes to the training data",
        "Activation ranges",
        "Synthesis progress",
        "Settings and versions",
    ]
    for expected in (
        *(
            "Gaussian noise, before",
            "synthetic set, after",
            "recorded in training",
            "Verdict: ",
            "BatchNorm divergence",
        ),
        *("loss (log scale, lower is better)", "One line per shard", "iterations", "25", "model digest", "torch"),
        *("real samples used", "24", "synthetic samples", "Made by dfq synthesize on "),
    ):
        assert expected in found.text, expected


def test_a_set_that_was_complete_has_a_page_without_losses(made: Path) -> None:
    report = made / "again.html"
    options = ["-n", 24, "--batch-size", 16, "-O", "iterations=25", "-O", "compile=never", *SPEC]
    result = run("synthesize", f"{made}/net.py:network", "-o", made / "set", *options, "--report", report, "--json")
    assert json.loads(result.stdout)["report"] == str(report)
    assert "Synthesis progress" not in page(report).headings


def test_the_page_of_a_quantization_has_every_part(made: Path) -> None:
    report = made / "quantized.html"
    arguments = [f"{made}/net.py:network", made / "set", "--calibrator", "torch-ao", "-o", made / "artifacts"]
    result = run("quantize", *arguments, "--report", report)
    assert "Agreement on 3 held-out samples: same class for " in result.output
    assert f"Report: {report}" in result.output
    found = page(report)
    assert found.headings == [
        "Agreement with the float network",
        "Files for deployment",
        "Quantization coverage",
        "Is the set good enough?",
        "What the samples look like",
        "How close it comes to the training data",
        "Activation ranges",
        "Settings and versions",
    ]
    for expected in (
        *(
            "Quantized by torch-ao W8A8",
            "3 synthetic samples that were not used for calibration",
            "Signal to noise (dB)",
        ),
        *("the noisiest first", "model.torchscript.pt", "KiB", "checked: ", "int8", "engine", "noisiest layer: "),
    ):
        assert expected in found.text, expected
    assert re.search(
        r"For [0-3] of 3 samples, which are too few to tell, the quantized network predicts the same", found.text
    )


def test_without_held_out_samples_the_page_says_so(made: Path) -> None:
    report = made / "own.html"
    arguments = [f"{made}/net.py:network", made / "set", "--calibrator", "torch-ao", "--report", report]
    result = run("quantize", *arguments, "--hold-out", 0, "--json")
    assert json.loads(result.stdout)["held_out"] is None
    assert "the calibration samples themselves, because none were held out" in page(report).text
    assert "Files for deployment" not in page(report).headings


def test_another_models_set_may_calibrate_and_is_inspected_as_plain_data(made: Path) -> None:
    report = made / "other.html"
    arguments = [f"{made}/net.py:other", made / "set", "--calibrator", "torch-ao", "--report", report]
    assert "was made from another model" in run("quantize", *arguments, code=5).stderr
    assert not report.exists()
    arguments.append("--allow-other-network")
    assert json.loads(run("quantize", *arguments, "--json").stdout)["held_out"]["samples"] == 3
    assert "Verdict: " in page(report).text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hold-out", 2], "--hold-out only applies to the report: add --report, or remove --hold-out."),
        (
            ["--report", "page.html", "--hold-out", 24],
            (
                "Held-out samples are not used for calibration, so fewer than the 24 samples of the set must be held "
                "out, got 24. Give e.g. 3."
            ),
        ),
    ],
)
def test_what_cannot_be_held_out_is_refused(made: Path, arguments: list[object], message: str) -> None:
    given = [f"{made}/net.py:network", made / "set", "--calibrator", "torch-ao", *arguments]
    assert message in run("quantize", *given, code=2).stderr
    assert not (made / "page.html").exists()


def test_samples_are_held_out_from_the_end(made: Path) -> None:
    data = SyntheticDataset.open(made / "set")
    assert calibration_part(data, 0) is data
    part = calibration_part(data, 3)
    assert len(part) == 21  # type: ignore[arg-type]
    assert (held_out_part(data, 3) == data.inputs()[21:]).all()
    assert len(held_out_part(data, 0)) == 24
    assert held_out_samples(7, None) == 0
    with pytest.raises(UsageError, match="fewer than the 8 samples of the set"):
        held_out_samples(8, 9)


# ------------------------------------------------------------------------------------- dfq inspect


def test_inspect_prints_the_figures_and_writes_the_page(made: Path) -> None:
    report = made / "inspected.html"
    result = run("inspect", made / "set", "--model", f"{made}/net.py:network", "--report", report)
    assert re.search(r"^BatchNorm divergence +[0-9.]+  nats", result.stdout, re.MULTILINE)
    assert "Verdict: " in result.stdout
    found = page(report)
    assert "Is set good enough to calibrate on?" in found.text
    assert "without any real data" in found.text
    assert "Activation ranges" in found.headings


def test_inspect_asks_for_no_shape_where_there_is_nothing_to_inspect(made: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", f"{made}/nowhere", "--model", f"{made}/net.py:network"])
    assert result.exit_code == DataError.exit_code
    assert "a synthetic data set, an .npz file or a folder of images" in " ".join(result.stderr.split())


def test_inspect_gives_json(made: Path) -> None:
    record = json.loads(run("inspect", made / "set", "--model", f"{made}/net.py:network", "--json").stdout)
    assert record["num_samples"] == 24
    assert [layer["name"] for layer in record["layers"]] == ["input", "1"]
    assert record["report"] is None


def test_inspect_takes_arrays_and_says_nothing_of_their_origin(made: Path) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    np.savez(made / "real.npz", x=inputs)
    report = made / "real.html"
    result = run("inspect", made / "real.npz", "-m", f"{made}/net.py:network", *SPEC, "--report", report, "--json")
    assert json.loads(result.stdout)["num_samples"] == 9
    assert "synthetic" not in page(report).text.replace("Synthetic samples are not meant", "")


def test_inspect_without_batch_norm_gives_the_rest(made: Path) -> None:
    report = made / "folded.html"
    np.savez(made / "floats.npz", inputs=np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32))
    result = run("inspect", made / "floats.npz", "-m", f"{made}/net.py:folded", *SPEC, "--report", report)
    assert "Verdict: no verdict." in result.stdout
    assert "Not available: divergence, ranges, score. " in result.stdout
    assert re.search(r"^teacher confidence +[0-9.]+%", result.stdout, re.MULTILINE)
    assert page(report).headings == ["Is the set good enough?", "What the samples look like", "Settings and versions"]


def test_inspect_refuses_another_models_set_before_it_writes(made: Path) -> None:
    report = made / "refused.html"
    result = run("inspect", made / "set", "-m", f"{made}/net.py:other", "--report", report, code=5)
    assert "was made from another model: its digest is " in result.stderr
    assert not report.exists()


def test_a_synthetic_set_brings_its_own_specification(made: Path) -> None:
    arguments = ["--shape", "3,8,8", "--value-range", "0,1"]
    result = run("inspect", made / "set", "-m", f"{made}/net.py:network", *arguments, code=2)
    message = "A synthetic set provides its own input specification: remove --shape, --value-range."
    assert message in result.stderr


def test_inspect_refuses_what_is_no_set(made: Path) -> None:
    result = run("inspect", made / "net.py", "-m", f"{made}/net.py:network", *SPEC, code=5)
    assert "is not a synthetic data set, an .npz file or a folder of images" in result.stderr


# ------------------------------------------------------------------------------------- parts


def events(*points: tuple[int, float], total: int = 64) -> list[ProgressEvent]:
    return [ProgressEvent("synthesize", done, total, {"loss": loss}) for done, loss in points]


def test_losses_are_told_apart_by_shard() -> None:
    told = events((0, 9.0), (16, 3.0), (32, 1.0), (32, 8.0), (48, 2.0), (64, 0.5))
    curves = loss_curves(told, [32, 32])
    assert curves is not None
    assert [(across, values) for _, across, values in curves.series] == [
        ((0.0, 50.0, 100.0), (9.0, 3.0, 1.0)),
        ((0.0, 50.0, 100.0), (8.0, 2.0, 0.5)),
    ]


def test_a_resumed_run_has_the_losses_of_what_it_made() -> None:
    curves = loss_curves(events((32, 8.0), (64, 0.5)), [32, 32])
    assert curves is not None
    assert [values for _, _, values in curves.series] == [(8.0, 0.5)]


def test_without_losses_there_is_no_plot_and_of_many_shards_only_some_are_drawn() -> None:
    assert loss_curves([ProgressEvent("synthesize", 1, 2)], [2]) is None
    assert loss_curves([ProgressEvent("calibrate", 1, 2, {"loss": 1.0})], [2]) is None
    many = loss_curves(events(*((2 * i + 1, 1.0) for i in range(40)), total=80), [2] * 40)
    assert many is not None
    assert len(many.series) == MOST_CURVES


def test_the_history_keeps_what_has_metrics() -> None:
    history = History()
    for event in (ProgressEvent("synthesize", 0, 2), *events((1, 0.5))):
        history(event)
    assert history.events == events((1, 0.5))


def test_curves_are_drawn_for_both_widths_and_follow_the_colors() -> None:
    plot = Curves((("loss", (0.0, 50.0), (1.0, 0.1)), ("other", (0.0,), (0.5,))), "percent", "loss", logarithmic=True)
    for narrow in (False, True):
        markup = curves_svg(plot, "p", narrow=narrow)
        assert "var(--series-0)" in markup
        assert "var(--series-1)" in markup
        assert ">percent<" in markup


def test_curves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"one value per step.*'loss'"):
        Curves((("loss", (0.0,), ()),), "step", "loss")


def test_fidelity_is_shown_with_the_rest_folded_and_exact_layers_named() -> None:
    layers = tuple(LayerFidelity(f"layer{index}", float(index)) for index in range(13))
    fidelity = Fidelity((*layers, LayerFidelity("last", float("inf"))), (("add", "no module"),), 8)
    section = calibration_section((), 0, fidelity)
    _, first, rest, others = section.blocks
    assert first.rows[0] == ("layer0", 0.0)  # type: ignore[union-attr]
    assert rest.rows == (("layer12", 12.0), ("last", "exact"))  # type: ignore[union-attr]
    assert rest.folded  # type: ignore[union-attr]
    assert others.entries == (("add", "no module"),)  # type: ignore[union-attr]
    assert not any("predicts the same class" in text for text in section.text)


def test_the_noise_of_several_networks_stands_side_by_side() -> None:
    first = Fidelity((LayerFidelity("b", 10.0), LayerFidelity("a", 30.0)), (), 4)
    second = Fidelity((LayerFidelity("a", 5.0),), (("add", "no module"), ("cat", "no module")), 4)
    (table,) = noise_section([("one", first), ("two", second)], "digits").blocks
    assert table.columns == ("Layer", "one", "two")  # type: ignore[union-attr]
    assert table.rows == (("a", 30.0, 5.0), ("b", 10.0, None))  # type: ignore[union-attr]
    assert table.notes == ("two: cannot be compared: add, cat.",)  # type: ignore[union-attr]


def test_a_network_without_float_parts_says_so() -> None:
    section = quality.coverage_section("x", Coverage((), ()))
    assert section.text == ("The framework reports every layer as quantized.",)


def test_a_report_is_a_frame_in_a_notebook() -> None:
    frame = Report("A <run>", ("Hello.",))._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "&lt;title&gt;A &amp;lt;run&amp;gt;&lt;/title&gt;" in frame
