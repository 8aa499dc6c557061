"""The demo run with stand-in plugins: every cell, the gaps and their reasons, the files, and reruns."""

from __future__ import annotations

import copy
import json
import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from dfq_plugins.cli.demo import demo
from dfq_plugins.demo.run import run_demo
from dfq_plugins.errors import ArtifactError, DataError, PluginError, UsageError
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.host.registry import Registry, build_registry
from dfq_plugins.types import (
    Artifact,
    Batch,
    Calibrator,
    CalibratorEntry,
    Check,
    Coverage,
    DataGenerator,
    GeneratorEntry,
    NumberFormat,
    ProgressEvent,
    QuantizedTensor,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dfq_plugins.types import InputSpec, Recipe

PLUGIN = "demo_test_plugin"

pytestmark = pytest.mark.filterwarnings("ignore:The network that:dfq_plugins.errors.DfqWarning")
"""The stand-ins for frameworks return other answers than the network."""


class Noise(DataGenerator):
    """A generator of plain noise."""

    def __init__(self, _options: object) -> None:
        pass

    def generate(
        self, _model: nn.Module, spec: InputSpec, *, num_samples: int, rng: torch.Generator, **_: object
    ) -> Iterator[Batch]:
        yield Batch(torch.randn(num_samples, *spec.shape, generator=rng).clamp(-0.8, 1.8))


class Identity(Calibrator):
    """A calibrator that only copies the network, and remembers in a buffer how many samples it saw."""

    def __init__(self, _options: object) -> None:
        pass

    def prepare(self, model: nn.Module, _spec: InputSpec, _recipe: Recipe, *, training: bool) -> nn.Module:
        assert not training
        return copy.deepcopy(model)

    def calibrate(self, prepared: nn.Module, batches: Iterable[torch.Tensor]) -> None:
        prepared.register_buffer("seen", torch.tensor(sum(len(batch) for batch in batches)))

    def convert(self, prepared: nn.Module) -> nn.Module:
        return prepared

    def describe(self, _converted: nn.Module) -> Coverage:
        int8 = NumberFormat(8, signed=True, symmetric=True, per_channel=False, stored_bits=8)
        return Coverage((QuantizedTensor("stem", "Conv2d", "weight", int8),), (("pool", "no kernel"),))

    def export(self, converted: nn.Module, _spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "model.txt"
        file.write_text(str(int(converted.seen)), encoding="utf-8")
        return (Artifact(file, "text", file.stat().st_size, (Check("compared", "same classes"),)),)


class OnlyEightBits(Identity):
    """A calibrator whose network answers zero always, and that refuses 4 bits."""

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        if recipe.weight_bits < 8:
            raise UsageError("this framework has 8 bits only")
        return super().prepare(model, spec, recipe, training=training)

    def convert(self, prepared: nn.Module) -> nn.Module:
        prepared.classifier.weight.data.zero_()
        prepared.classifier.bias.data = torch.eye(10)[0]
        return prepared


class Unexported(Identity):
    """A calibrator whose export fails."""

    def export(self, _converted: nn.Module, _spec: InputSpec, _path: Path) -> tuple[Artifact, ...]:
        raise ArtifactError("the exporter does not know this layer")


@hookimpl
def dfq_generators() -> Iterable[GeneratorEntry]:
    yield GeneratorEntry("bns", "stands in for the default", f"{PLUGIN}:Noise")
    yield GeneratorEntry("absent", "needs what is not there", f"{PLUGIN}:Noise", ("no_such_module",), "no-such")


@hookimpl
def dfq_calibrators() -> Iterable[CalibratorEntry]:
    yield CalibratorEntry("identity", "copies", f"{PLUGIN}:Identity")
    yield CalibratorEntry("eight", "8 bits only", f"{PLUGIN}:OnlyEightBits")
    yield CalibratorEntry("absent", "needs what is not there", f"{PLUGIN}:Identity", ("no_such_module",), "no-such")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of the stand-ins above and nothing else."""
    return make_registry(monkeypatch, dfq_generators, dfq_calibrators)


def make_registry(monkeypatch: pytest.MonkeyPatch, *hooks: object) -> Registry:
    module = ModuleType(PLUGIN)
    vars(module).update({hook.__name__: hook for hook in hooks})
    vars(module).update({kind.__name__: kind for kind in (Noise, Identity, OnlyEightBits, Unexported)})
    monkeypatch.setitem(sys.modules, PLUGIN, module)
    return build_registry(entry_points=[EntryPoint("demo", PLUGIN, "dfq_plugins")], strict=True)


@pytest.mark.slow
def test_demo_measures_every_ready_pair_and_leaves_refused_cells_empty(registry: Registry, tmp_path: Path) -> None:
    result = run_demo(tmp_path / "out", registry=registry)
    assert result.columns == (("identity", "w8a8"), ("identity", "w4a4"), ("eight", "w8a8"), ("eight", "w4a4"))
    assert result.sources == ("256 real digits", "bns")
    assert result.float_accuracy >= 97
    for source in result.sources:
        float_twice, zeros, refused = result.row(source)[:2], result.row(source)[2], result.row(source)[3]
        assert float_twice == (result.float_accuracy,) * 2
        assert zeros == pytest.approx(100 * 59 / 596)  # the held-out zeros
        assert refused is None
    assert result.refusals == ("eight w4a4: this framework has 8 bits only",)


def test_demo_writes_data_artifacts_report_and_results(registry: Registry, tmp_path: Path) -> None:
    result = run_demo(tmp_path, registry=registry)
    assert {path.name for path in tmp_path.iterdir()} == {"synthetic", "artifacts", "report.html", "results.json"}
    assert (tmp_path / "synthetic" / "bns" / "manifest.json").is_file()
    assert (tmp_path / "artifacts" / "identity" / "model.txt").read_text(encoding="utf-8") == "256"
    assert [(name, item.path.name) for name, item in result.artifacts] == [
        ("identity", "model.txt"),
        ("eight", "model.txt"),
    ]
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in written.items() if key != "seconds"} == {
        key: value for key, value in result.as_dict().items() if key != "seconds"
    }
    assert written["artifacts"][0]["path"] == "artifacts/identity/model.txt"


def test_report_shows_table_reasons_coverage_files_and_settings(registry: Registry, tmp_path: Path) -> None:
    html = run_demo(tmp_path, seed=5, registry=registry).report.read_text(encoding="utf-8")
    for expected in (
        *(
            "float network",
            "256 real digits",
            "eight w4a4: this framework has 8 bits only",
            "stands in for the default",
        ),
        *(
            "identity W8A8: 1 layers quantized, 1 left in float",
            "artifacts/identity/model.txt",
            "checked: compared",
        ),
        *("Generator bns", "<dt>seed</dt><dd>5</dd>", "Calibrator eight", "reduce.1"),
        *("Which sets are good enough", "Verdict", "recorded in training", "Noise by layer", "exact"),
    ):
        assert expected in html
    assert html.count('src="data:image/png;base64,') == 2 * 24


def test_text_shows_the_table(registry: Registry, tmp_path: Path) -> None:
    text = run_demo(tmp_path, registry=registry).render_text()
    lines = text.splitlines()
    assert lines[2].split() == ["identity", "eight"]
    assert lines[3].split() == ["calibrated", "on", "W8A8", "W4A4", "W8A8", "W4A4"]
    assert lines[4].split()[:2] == ["float", "network"]
    assert lines[6].split()[0] == "bns"
    assert lines[6].split()[-1] == "-"
    assert "eight w4a4: this framework has 8 bits only" in text
    assert max(map(len, lines[2:7])) <= 80
    assert str(tmp_path) in text


@pytest.mark.slow
def test_rerun_over_an_earlier_demo_works_also_with_another_seed(registry: Registry, tmp_path: Path) -> None:
    run_demo(tmp_path, registry=registry)
    first = (tmp_path / "synthetic" / "bns" / "shard-00000.safetensors").read_bytes()
    run_demo(tmp_path, registry=registry)
    assert (tmp_path / "synthetic" / "bns" / "shard-00000.safetensors").read_bytes() == first
    run_demo(tmp_path, seed=1, registry=registry)
    assert (tmp_path / "synthetic" / "bns" / "shard-00000.safetensors").read_bytes() != first


def test_foreign_folder_is_refused_and_left_as_it_was(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(DataError, match=r"contains 'thesis\.tex', which no demo wrote\. Choose another"):
        run_demo(tmp_path, registry=registry)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_foreign_files_inside_a_known_folder_are_kept(registry: Registry, tmp_path: Path) -> None:
    notes = tmp_path / "synthetic" / "bns" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("precious", encoding="utf-8")
    with pytest.raises(DataError):
        run_demo(tmp_path, registry=registry)
    assert notes.read_text(encoding="utf-8") == "precious"


def test_demo_without_a_framework_names_the_pip_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @hookimpl
    def dfq_calibrators() -> Iterable[CalibratorEntry]:
        yield CalibratorEntry("absent", "x", f"{PLUGIN}:Identity", ("no_such_module",), "dfq-plugins[absent]")

    registry = make_registry(monkeypatch, dfq_generators, dfq_calibrators)
    with pytest.raises(PluginError, match=r'none is installed\. Run: pip install "dfq-plugins\[absent\]"'):
        run_demo(tmp_path / "out", registry=registry)
    assert not (tmp_path / "out").exists()


def test_listeners_hear_the_run_to_its_end(registry: Registry, tmp_path: Path) -> None:
    heard: list[ProgressEvent] = []
    run_demo(tmp_path, listeners=[heard.append], registry=registry)
    assert heard[-1] == ProgressEvent("quantize and measure", 8, 8)


def test_demo_leaves_the_global_state(registry: Registry, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run_demo(tmp_path, registry=registry)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_a_failed_export_costs_no_measurement_and_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @hookimpl
    def dfq_calibrators() -> Iterable[CalibratorEntry]:
        yield CalibratorEntry("unexported", "exports nothing", f"{PLUGIN}:Unexported")

    registry = make_registry(monkeypatch, dfq_generators, dfq_calibrators)
    monkeypatch.setattr("dfq_plugins.demo.run.get_registry", lambda: registry)
    shown = CliRunner().invoke(demo, ["--output", str(tmp_path)])
    assert isinstance(shown.exception, ArtifactError)
    assert "Rejected: the export: the exporter does not know this layer" in shown.output
    assert "Files that were rejected" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert result["rejected"][0]["reason"] == "the exporter does not know this layer"
    assert all(cell["accuracy"] is not None for cell in result["measurements"])
