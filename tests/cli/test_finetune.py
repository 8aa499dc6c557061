"""`dfq finetune` and `dfq quantize --finetune`: arguments, output, report, resumption."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import dfq_plugins
from command_line import CLASSES, SPEC, network_file, run
from dfq_plugins.distillation.history import TrainingPoint
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.distillation.state import CHECKPOINT_FILE
from dfq_plugins.quantization.finetune import FinetuneRun
from dfq_plugins.report.render import Report, render_html
from dfq_plugins.report.training import training_curves, training_section
from dfq_plugins.types import Coverage, Recipe

if TYPE_CHECKING:
    from pathlib import Path


QUICK = ["--calibrator", "pytorch-quantization", "--recipe", "w4a4", "-T", "steps=6", "-T", "batch_size=8"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return network_file(tmp_path)


@pytest.fixture
def folder(model: str, tmp_path: Path) -> Path:
    run("synthesize", model, "-o", tmp_path / "set", "--generator", "gaussian", "-n", 24, *SPEC, *CLASSES)
    return tmp_path / "set"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a stand-in into the place of the training, and return what it was asked for."""
    seen: dict[str, Any] = {}

    def stand_in(_model: object, _data: object, **settings: Any) -> object:
        seen.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(dfq_plugins, "finetune", stand_in)
    return seen


@pytest.mark.parametrize("command", [["finetune"], ["quantize", "--finetune"]])
def test_it_trains_exports_and_reports(command: list[str], model: str, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(*command, model, folder, *QUICK, "-o", tmp_path / "out", "--report", page)
    assert "Fine-tuned for 6 steps, " in result.stdout
    for moment in ("before", "after"):
        assert f"Agreement on 2 held-out samples {moment}: same class for " in result.stdout
    assert (tmp_path / "out" / "model_qdq.onnx").is_file()
    assert f"Report: {page}" in result.stdout
    html = page.read_text()
    assert "Fine-tuning progress" in html
    assert "held-out divergence" in html
    assert "2 synthetic samples that were not used for training" in html


def test_json_holds_the_curves(model: str, folder: Path) -> None:
    told = json.loads(run("finetune", model, folder, *QUICK, "-T", "num_evaluations=2", "--json").stdout)
    assert [point["step"] for point in told["history"]] == [0, 3, 6]
    assert told["training"]["batch_size"] == 8
    assert told["held_out"] == 2
    assert 0 <= told["agreement_before"] <= 1


def test_every_setting_reaches_the_training(model: str, folder: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    work = tmp_path / "work"
    result = run(
        "finetune", model, folder, *QUICK, "-O", "learned_ranges=true", "--max-seconds", 9, "--work", work,
        "--allow-other-network",
        code=130,
    )  # fmt: skip
    assert asked["training"] == {"steps": "6", "batch_size": "8", "max_seconds": 9.0}
    assert (asked["options"], asked["work"], asked["allow_other_network"]) == ({"learned_ranges": "true"}, work, True)
    assert f"Checkpoints are in {work}: run the same command again to resume." in result.stderr
    assert "use --work FOLDER to keep checkpoints" in run("finetune", model, folder, *QUICK, code=130).stderr


def test_a_work_folder_keeps_the_training(model: str, folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first, again = (
        json.loads(run("finetune", model, folder, *QUICK, "--work", work, "--json").stdout) for _ in range(2)
    )
    assert (work / "finetune" / CHECKPOINT_FILE).is_file()
    assert first["history"] == again["history"]  # with the seconds: nothing was trained again


def test_data_of_another_model(model: str, folder: Path) -> None:
    arguments = ["finetune", model.replace(":network", ":other"), folder, *QUICK]
    assert "was made from another model: its digest is " in run(*arguments, code=5).stderr
    (line,) = [line for line in run(*arguments, "--allow-other-network").stderr.splitlines() if "digest" in line]
    assert line.startswith(f"Warning: The data in {folder} was made from another model: its digest is ")


def test_slips_are_told_before_anything_is_loaded(model: str, folder: Path) -> None:
    arguments = ["finetune", model, folder, *QUICK]
    assert "Did you mean 'flip'?" in run(*arguments, "-T", "flipp=true", code=2).stderr
    assert "cannot be '-1'" in run(*arguments, "-T", "kl_weight=-1", code=2).stderr
    assert "name one with --generator" in run(*arguments, "-G", "lr=1", code=2).stderr
    assert "Unknown generator 'nobody'" in run(*arguments, "--generator", "nobody", code=3).stderr


def test_training_settings_without_finetune(model: str, folder: Path) -> None:
    told = run("quantize", model, folder, *QUICK, code=2).stderr
    assert "--training only applies to fine-tuning: add --finetune" in told
    told = run("quantize", model, folder, *QUICK, "--finetune", "--hold-out", 3, "--report", "x.html", code=2).stderr
    assert "-T validation_fraction=0.1" in told


def test_the_settings_are_listed() -> None:
    listed = run("finetune", "--list-training").stdout
    assert "gradient_clip" in listed
    assert "float > 0 or none" in listed


def test_the_section_of_a_regression_has_no_agreement() -> None:
    points = (TrainingPoint(0, 0.0, 0.0, None, 0.5, None), TrainingPoint(4, 2.0, 0.0, 1.5, 0.25, None))
    tuned = FinetuneRun(
        None, "fake", Recipe(8, 8), Coverage(()), (), float("nan"), float("nan"), (), points, TrainingOptions(), 3  # type: ignore[arg-type]
    )  # fmt: skip
    section = training_section(tuned)
    table = section.blocks[0]
    assert [row[0] for row in table.rows] == ["after calibration only", "step 4", "finished model"]  # type: ignore[union-attr]
    assert all(row[3] is None for row in table.rows)  # type: ignore[union-attr]
    assert training_curves(points).series[1][2] == (0.5, 0.25)
    assert "training steps" in render_html(Report("page", (), sections=(section,)))
