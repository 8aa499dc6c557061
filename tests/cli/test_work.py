"""The commands that work on a model: arguments, results, interruption and resumption."""

from __future__ import annotations

import contextlib
import inspect
import json
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import dfq_plugins
from command_line import CLASSES, SPEC, network_file, run
from dfq_plugins.cli import progress
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.data.manifest import read_manifest, write_manifest
from dfq_plugins.network.agreement import OutputAgreement
from dfq_plugins.network.load import load_model
from dfq_plugins.synthesis import run as pipeline
from dfq_plugins.types import Artifact, Check, Coverage, InputSpec, NumberFormat, ProgressEvent, QuantizedTensor, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result


@pytest.fixture
def model(tmp_path: Path) -> str:
    return network_file(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set"


def synthesize(model: str, folder: Path, *arguments: object, code: int = 0) -> Result:
    return run("synthesize", model, "-o", folder, "--generator", "gaussian", *SPEC, *CLASSES, *arguments, code=code)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a stand-in into the place of the synthesis, and return what it was asked for."""
    seen: dict[str, Any] = {}

    def stand_in(_model: object, spec: object, **settings: Any) -> object:
        seen.update(settings, spec=spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(dfq_plugins, "synthesize", stand_in)
    return seen


def test_synthesize_writes_a_set_and_says_so_in_json(model: str, folder: Path) -> None:
    result = synthesize(model, folder, "-n", 10, "--seed", 3, "--json", "--batch-size", 4)
    told = json.loads(result.stdout)
    assert (told["num_samples"], told["generator"], told["seed"], told["folder"]) == (10, "gaussian", 3, str(folder))
    assert told["input_spec"]["num_classes"] == 5
    assert len(SyntheticDataset.open(folder)) == 10


def test_synthesize_says_in_a_line_what_was_made(model: str, folder: Path) -> None:
    assert f"10 samples from gaussian in {folder}, " in synthesize(model, folder, "-n", 10).stdout


def test_extend_takes_everything_else_from_the_set(model: str, folder: Path) -> None:
    synthesize(model, folder, "-n", 10, "--seed", 3, "-O", "clamp=false")
    before = SyntheticDataset.open(folder).inputs(10)
    run("synthesize", model, "-o", folder, "--extend", 5)
    extended = SyntheticDataset.open(folder)
    assert len(extended) == 15
    assert (extended.manifest.seed, extended.manifest.generator.options) == (3, {"clamp": False})
    assert torch.equal(extended.inputs(10), before)


def test_extend_finishes_an_interrupted_set_first(model: str, folder: Path, asked: dict[str, Any]) -> None:
    _interrupted_set(model, folder)
    result = run("synthesize", model, "-o", folder, "--extend", 5, code=130)
    assert asked["num_samples"] == 10
    assert "The set was interrupted: completing its 10 samples without adding any." in result.stderr


def _interrupted_set(model: str, folder: Path) -> None:
    spec = InputSpec((3, 8, 8), num_classes=5)
    pipeline.synthesize(load_model(model), spec, generator="gaussian", num_samples=10, output=folder)
    write_manifest(folder, replace(read_manifest(folder), state="incomplete"))


def test_extend_without_a_set_is_a_data_error(model: str, folder: Path) -> None:
    result = run("synthesize", model, "-o", folder, "--extend", 5, code=5)
    assert f"Error: {folder} is not a data set" in result.stderr


def test_every_setting_reaches_the_pipeline(model: str, folder: Path, asked: dict[str, Any]) -> None:
    arguments = ["-n", 7, "--seed", 3, "--batch-size", 2, "-O", "clamp=no", "--num-classes", 5]
    run(
        "synthesize", model, "-o", folder, "--generator", "gaussian", "--shape", "3,8,8", "--value-range", "-1,1",
        *arguments, code=130,
    )  # fmt: skip
    assert (asked["generator"], asked["num_samples"], asked["seed"], asked["batch_size"], asked["output"]) == (
        "gaussian",
        7,
        3,
        2,
        folder,
    )
    assert asked["options"] == {"clamp": "no"}
    assert (asked["spec"].shape, asked["spec"].value_range) == ((3, 8, 8), (-1.0, 1.0))


def test_what_is_not_given_is_left_to_the_pipeline(model: str, folder: Path, asked: dict[str, Any]) -> None:
    result = run("synthesize", model, "-o", folder, "--shape", "3,8,8", code=130)
    defaults = inspect.signature(pipeline.synthesize).parameters
    for name in ("generator", "num_samples", "seed", "batch_size"):
        assert asked[name] == defaults[name].default
    assert f"Interrupted. Finished work is kept in {folder}: run the same command again to resume." in result.stderr


def test_an_interrupted_synthesis_goes_on_to_the_same_bytes(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    synthesize(model, whole, "-n", 12, "--batch-size", 4)

    @contextlib.contextmanager
    def interrupting() -> Iterator[Callable[[ProgressEvent], None]]:
        def listen(event: ProgressEvent) -> None:
            if event.completed > 4:
                raise KeyboardInterrupt

        yield listen

    with monkeypatch.context() as patch:
        patch.setattr(progress, "reporting", interrupting)
        synthesize(model, folder, "-n", 12, "--batch-size", 4, code=130)
    assert read_manifest(folder).state == "incomplete"
    synthesize(model, folder, "-n", 12, "--batch-size", 4)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in whole.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--generator", "gausian"], 3, "Unknown generator 'gausian'. Did you mean 'gaussian'?"),
        (["--generator", "gaussian", "-O", "clam=1"], 2, "Unknown option 'clam' of generator 'gaussian'. Did you mean"),
        (["--generator", "gaussian", "-O", "clamp=maybe"], 2, "Option 'clamp' of generator 'gaussian' cannot be 'ma"),
        ([], 4, "The model file missing.py does not exist."),
    ],
)
def test_slips_are_found_before_the_model_is_loaded(
    folder: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run("synthesize", "missing.py:network", "-o", folder, *arguments, code=code)
    assert message in result.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-n", 0], 2, "0 is not in the range x>=1."),
        (["--mean", "0.5"], 2, "mean needs one value per channel (3), got 1"),
        (["--value-range", "1"], 2, "--value-range takes the lowest and the highest value, got 1 numbers."),
        (["--weights", "missing.pth"], 4, "The weights file missing.pth does not exist."),
    ],
)
def test_wrong_settings_leave_no_folder(
    model: str, folder: Path, arguments: list[object], code: int, message: str
) -> None:
    result = synthesize(model, folder, *arguments, code=code)
    assert message in result.stderr
    assert not folder.exists()


def test_threads(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    synthesize(model, folder, "-n", 2, "--threads", 3)
    assert 3 in threads


INT8 = NumberFormat(8, signed=True, symmetric=True, per_channel=True, stored_bits=8)
UINT8 = NumberFormat(8, signed=False, symmetric=False, per_channel=False, stored_bits=8, range=(0.0, 6.0))
RUN = types.SimpleNamespace(
    calibrator="torch-ao",
    recipe=Recipe(8, 8),
    agreement=0.9876,
    output_agreement=(OutputAgreement("output", "classes", 81, 30.0, 0.99, 0.9876),),
    coverage=Coverage(
        (
            QuantizedTensor("0", "Conv2d", "weight", INT8),
            QuantizedTensor("0", "Conv2d", "input", UINT8),
            QuantizedTensor("5", "Linear", "weight", INT8),
            QuantizedTensor("relu", "ReLU", "activation", UINT8),
        ),
        (("3", "no integer kernel"),),
    ),
    reconstruction=(),
    artifacts=(Artifact(Path("out/model.pt"), "TorchScript", 2345, (Check("run", "agreement 100%"),)),),
    rejected=(),
)


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def stand_in(_model: object, data: object, **settings: Any) -> object:
        seen.update(settings, data=data)
        return RUN

    monkeypatch.setattr(dfq_plugins, "run_quantization", stand_in)
    return seen


def test_quantize_shows_coverage_agreement_and_artifacts(model: str, folder: Path, quantized: dict[str, Any]) -> None:
    synthesize(model, folder, "-n", 4)
    out = folder.parent / "out"
    settings = ["--calibrator", "torch-ao", "--recipe", "w8a8", "-O", "engine=auto", "-o", out]
    output = run("quantize", model, folder, *settings).stdout
    for expected in (
        "Quantized by torch-ao at w8a8: 2 layers.",
        "1 x weights: int8 per channel, symmetric; inputs: uint8 per tensor\n",
        "1 x weights: int8 per channel, symmetric; inputs: float\n",
        "1 x activations: uint8 per tensor\n",
        "3 stays in float: no integer kernel",
        "Agreement with the float model on the data: same class for 98.76% of samples, signal-to-noise ratio 30.0 dB",
    ):
        assert expected in output
    (row,) = [line.split() for line in output.splitlines() if "model.pt" in line]
    assert row == ["out/model.pt", "TorchScript", "2.3", "kB", "run:", "agreement", "100%"]
    assert isinstance(quantized.pop("data"), SyntheticDataset)
    assert len(quantized.pop("listeners")) == 1
    assert quantized.pop("spec") == SyntheticDataset.open(folder).spec
    assert quantized.pop("allow_other_network") is False
    assert quantized == {
        "calibrator": "torch-ao",
        "recipe": "w8a8",
        "options": {"engine": "auto"},
        "output": out,
        "reconstruct": False,
        "work": None,
    }


@pytest.mark.usefixtures("quantized")
def test_a_network_that_nobody_called_a_classifier_is_said_to_be_one_of_values(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = "It is not known whether the network is a classifier: its outputs are compared by their values"
    assert unknown in run("synthesize", model, "-o", folder, "--generator", "gaussian", *SPEC, "-n", 4).stderr
    values = (OutputAgreement("out", "values", 4, 30.0, 0.99), OutputAgreement("aux", "values", 4, 9.0, 0.9))
    monkeypatch.setattr(RUN, "output_agreement", values)
    result = run("quantize", model, folder, "--calibrator", "torch-ao")
    assert unknown in result.stderr
    assert "on the data:\n  out: signal-to-noise ratio 30.0 dB\n  aux: signal-to-noise ratio 9.0 dB" in result.stdout
    assert unknown not in run("quantize", model, folder, "--calibrator", "torch-ao", "--num-classes", 0).stderr


@pytest.mark.usefixtures("quantized")
def test_quantize_in_json(model: str, folder: Path) -> None:
    synthesize(model, folder, "-n", 4)
    told = json.loads(run("quantize", model, folder, "--calibrator", "torch-ao", "--json").stdout)
    assert (told["calibrator"], told["recipe"], told["agreement"]) == ("torch-ao", "w8a8", 0.9876)
    assert told["coverage"]["quantized"][1] == {
        "name": "0",
        "kind": "Conv2d",
        "role": "input",
        "format": {
            "bits": 8,
            "signed": False,
            "symmetric": False,
            "per_channel": False,
            "stored_bits": 8,
            "range": [0.0, 6.0],
            "exponent_bits": 0,
        },
    }
    assert told["coverage"]["unquantized"] == [["3", "no integer kernel"]]
    assert told["artifacts"][0]["path"] == "out/model.pt"


def test_quantize_refuses_a_folder_without_a_set(model: str, tmp_path: Path) -> None:
    result = run("quantize", model, tmp_path / "nothing", "--calibrator", "torch-ao", code=5)
    assert "is not a data set" in result.stderr


def test_quantize_names_the_nearest_calibrator(model: str, folder: Path) -> None:
    result = run("quantize", model, folder, "--calibrator", "torch_ao", code=3)
    assert "Unknown calibrator 'torch_ao'. Did you mean 'torch-ao'?" in result.stderr


def test_similarity_ranks_sources(model: str, folder: Path, tmp_path: Path) -> None:
    synthesize(model, folder, "-n", 16)
    far = tmp_path / "far.npz"
    np.savez(far, x=np.full((16, 3, 8, 8), 40, np.float32))
    result = run("similarity", model, far, folder, *SPEC)
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [["1", str(folder)], ["2", str(far)]]
    told = json.loads(run("similarity", model, far, folder, *SPEC, "--json").stdout)
    assert [row["name"] for row in told["ranking"]] == [str(folder), str(far)]
    assert [row["num_samples"] for row in told["ranking"]] == [16, 16]


def test_similarity_takes_the_specification_of_a_synthetic_set(model: str, folder: Path, tmp_path: Path) -> None:
    synthesize(model, folder, "-n", 16)
    images = tmp_path / "images.npz"
    np.savez(images, x=np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))
    given = run("similarity", model, images, folder, *SPEC, "--json").stdout
    assert run("similarity", model, images, folder, "--json").stdout == given
    assert run("similarity", model, images, folder, "--shape", "3,8,8", "--json").stdout == given
    refused = run("similarity", model, images, "--shape", "3,8,8", code=2)
    assert "its normalization is not known. Give mean and std" in refused.stderr
    refused = run("similarity", model, images, folder, "--mean", "0,0,0", "--std", "1,1,1", code=2)
    assert "--mean is (0.0, 0.0, 0.0), but the synthetic set" in refused.stderr


def test_every_command_asks_for_the_network_of_the_set(model: str, folder: Path) -> None:
    synthesize(model, folder, "-n", 16)
    other = model.replace(":network", ":other")
    brief = ["-T", "steps=1", "-T", "batch_size=8"]
    for command in (
        ["quantize", other, folder, "--calibrator", "pytorch-quantization"],
        ["quantize", other, folder, "--calibrator", "pytorch-quantization", "--report", folder.parent / "a.html"],
        ["similarity", other, folder],
        ["inspect", folder, "-m", other],
        ["prune", other, folder, "--sparsity", "0.1", *brief],
        ["distill", "--teacher", other, "--student", model, "--data", folder, *brief],
    ):
        assert "was made from another model: its digest is " in run(*command, code=5).stderr
        assert "Warning: The data in" in run(*command, "--allow-other-network").stderr


@dataclass(frozen=True)
class Demo:
    report: Path
    rejected: tuple[()] = ()

    def render_text(self) -> str:
        return "the table"

    def as_dict(self) -> dict[str, object]:
        return {"report": self.report, "divergence": float("inf")}


def test_demo_prints_the_table_and_where_the_report_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = {}

    def run_demo(output: Path, seed: int, listeners: object) -> Demo:
        seen.update(output=output, seed=seed, listeners=listeners)
        return Demo(output / "report.html")

    monkeypatch.setattr("dfq_plugins.demo.run.run_demo", run_demo)
    assert run("demo", "-o", tmp_path, "--seed", 3).stdout == f"the table\n\nReport: {tmp_path / 'report.html'}\n"
    assert (seen["output"], seen["seed"]) == (tmp_path, 3)
    told = json.loads(run("demo", "--json").stdout)
    assert told == {"report": "dfq-demo/report.html", "divergence": None}
