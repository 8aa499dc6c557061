"""`dfq record`: arguments, what it prints, sources with and without labels, and messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from command_line import SPEC, network_file
from dfq_plugins.cli import cli
from dfq_plugins.recording.info import read_info

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

CLASSES = ["--num-classes", "2"]

NETWORK = """
import torch
from torch import nn

def network():
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
        model[0].bias.zero_()  # features lie around zero, so that both classes occur
        model[4].bias.zero_()
    return model
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    return network_file(tmp_path, NETWORK)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(path, inputs=rng.normal(size=(300, 3, 8, 8)).astype(np.float32), labels=np.arange(300, dtype=np.uint8) % 2)
    return path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["record", *map(str, arguments), *SPEC, *CLASSES])
    assert result.exit_code == code, result.output
    return result


def test_a_file_with_labels_is_recorded(model: str, samples: Path, tmp_path: Path) -> None:
    result = run(model, samples, "-o", tmp_path / "r", "--dropout-filters", 2)
    assert f"300 samples recorded in {tmp_path / 'r'}" in result.stdout
    assert "What the record reveals:\n  - The number of samples in each of the 2 classes." in result.stdout
    assert "record: " in result.stderr
    assert "of 300" in result.stderr
    info = read_info(tmp_path / "r")
    assert info.labels == "given"
    assert info.class_counts == (150, 150)
    assert [layer.name for layer in info.layers] == ["4", "output"]
    assert info.dropout_filters == 2


def test_every_setting_arrives(model: str, samples: Path, tmp_path: Path) -> None:
    result = run(
        *(model, samples, "-o", tmp_path / "r", "--statistics", "top, spectral", "--layers", "2,4", "--json"),
        *("--units", "channel", "--coefficients", "0.5", "--labels", "teacher", "--epsilon", "3", "--delta", "1e-6"),
        *("--clip-norm", "7", "--max-memory", "0.5", "--seed", "1"),
    )
    summary = json.loads(result.stdout)
    info = read_info(tmp_path / "r")
    assert (info.statistics, info.units, info.coefficients, info.labels) == (
        ("top", "spectral"),
        "channel",
        0.5,
        "teacher",
    )
    assert [(layer.name, layer.units) for layer in info.layers] == [("2", 4), ("4", 16), ("output", 2)]
    assert info.noise is not None
    assert (info.noise.epsilon, info.noise.delta, info.noise.clip_norm) == (3, 1e-6, 7)
    assert summary["layers"] == {"2": 4, "4": 16, "output": 2}
    assert summary["reveals"] == list(info.reveals)
    assert summary["bytes"] == sum(file.stat().st_size for file in (tmp_path / "r").iterdir())


def test_a_folder_of_images_is_recorded_in_the_classes_that_the_model_names(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    run(model, folder, "-o", tmp_path / "r")
    info = read_info(tmp_path / "r")
    assert info.labels == "teacher"
    assert sum(info.class_counts) == 12


def test_labels_and_samples_that_do_not_fit_are_refused(model: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.zeros((4, 3, 8, 8), np.float32), labels=np.arange(6) % 2)
    result = run(model, tmp_path / "d.npz", "-o", tmp_path / "r", code=5)
    assert "holds 4 samples but 6 labels. Provide one label per sample." in result.stderr
    assert not (tmp_path / "r").exists()


def test_labels_that_are_no_class_numbers_are_refused(model: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.zeros((4, 3, 8, 8), np.float32), labels=np.linspace(0, 1, 4))
    result = run(model, tmp_path / "d.npz", "-o", tmp_path / "r", code=5)
    assert "holds labels of type float64. Provide class numbers, one integer per sample." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--statistics", "most"], "Option 'statistics' of the recording cannot be ('most',)", 2),
        (["--max-memory", "0.000001"], "but max_memory is 1e-06. With units=channel they take", 2),
        (["--layers", "9"], "it does not call '9'", 2),
        (["--epsilon", "0"], "Option 'epsilon' of the recording cannot be 0.0", 2),
        (["--device", "nowhere"], "--device nowhere is not available", 2),
    ],
)
def test_wrong_settings_are_refused(
    model: str, samples: Path, tmp_path: Path, arguments: list[str], message: str, code: int
) -> None:
    assert message in run(model, samples, "-o", tmp_path / "r", *arguments, code=code).stderr
    assert not (tmp_path / "r").exists()


def test_a_folder_in_use_is_refused_before_the_model_is_loaded(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("mine")
    result = run("no_such_package:network", samples, "-o", tmp_path / "r", code=5)
    assert "holds other files. Delete it, or choose another folder." in result.stderr


def test_the_record_goes_to_a_generator(model: str, samples: Path, tmp_path: Path) -> None:
    run(model, samples, "-o", tmp_path / "r")
    settings = ["--generator", "record-spectral", "-O", f"record={tmp_path / 'r'}", "-O", "iterations=2", "-n", "4"]
    result = CliRunner().invoke(cli, ["synthesize", model, "-o", str(tmp_path / "set"), *settings, *SPEC, *CLASSES])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli, ["synthesize", model, "-o", str(tmp_path / "set"), "--extend", "4"])
    assert result.exit_code == 0, result.output
    assert "8 samples from record-spectral" in result.stdout
    result = CliRunner().invoke(
        cli, ["synthesize", model, "-o", str(tmp_path / "b"), "--generator", "record-top", *SPEC]
    )
    assert result.exit_code == 2
    assert "The model's owner makes it with dfq record" in result.stderr
