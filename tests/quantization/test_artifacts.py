"""Artifacts: written, run, compared, renamed; a rejected file is kept and costs neither the others nor the model."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.errors import ArtifactError, DataError
from dfq_plugins.network.digest import model_digest
from dfq_plugins.quantization.artifacts import (
    ArtifactRecipe,
    RejectedArtifactsError,
    compare,
    export_all,
    require_folder,
    write_artifact,
    write_artifacts,
)
from dfq_plugins.quantization.finetune import finetune
from dfq_plugins.quantization.manifest import MANIFEST_FILE
from dfq_plugins.quantization.run import run_quantization
from dfq_plugins.types import Check, InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSED = (Check("run", "it runs"),)


def recipe(path: Path, *, text: str = "sound", check: Callable[[Path], tuple[Check, ...]] | None = None) -> Any:
    return ArtifactRecipe(path, "text", lambda file: file.write_text(text), check or (lambda _: PASSED))


def failing(error: BaseException) -> Callable[[Path], tuple[Check, ...]]:
    def check(_path: Path) -> tuple[Check, ...]:
        raise error

    return check


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_passes_has_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    artifact = write_artifact(recipe(tmp_path / "new" / "model.txt"))
    assert (artifact.path.read_text(), artifact.size_bytes, artifact.checks) == ("sound", 5, PASSED)
    assert names(tmp_path / "new") == ["model.txt"]


def test_a_file_that_fails_is_kept_as_rejected_with_what_differs_and_an_older_one_stays(tmp_path: Path) -> None:
    write_artifact(recipe(tmp_path / "model.txt", text="older"))
    fault = ArtifactError("It differs.", faults=["conv: 3 of 9"])
    with pytest.raises(
        RejectedArtifactsError, match=r"^It differs\. The file was kept as model\.txt\.rejected\.$"
    ) as e:
        write_artifact(recipe(tmp_path / "model.txt", text="newer", check=failing(fault)))
    (rejected,) = e.value.rejected
    assert (rejected.name, rejected.format, rejected.reason) == ("model.txt", "text", "It differs.")
    assert rejected.faults == e.value.faults == ("conv: 3 of 9",)
    assert rejected.path is not None
    assert rejected.path.read_text() == "newer"
    assert (tmp_path / "model.txt").read_text() == "older"
    write_artifact(recipe(tmp_path / "model.txt", text="mended"))
    assert names(tmp_path) == ["model.txt"]


def test_the_other_artifacts_are_written_all_the_same(tmp_path: Path) -> None:
    recipes = [
        recipe(tmp_path / "first", check=failing(ArtifactError("First is wrong."))),
        recipe(tmp_path / "second"),
        recipe(tmp_path / "third", check=failing(ValueError("no such node"))),
    ]
    with pytest.raises(RejectedArtifactsError) as caught:
        write_artifacts(recipes)
    assert [artifact.path.name for artifact in caught.value.artifacts] == ["second"]
    assert [artifact.name for artifact in caught.value.rejected] == ["first", "third"]
    assert "This model has no text form that runs: ValueError: no such node. Rewrite the operation" in str(caught.value)
    assert names(tmp_path) == ["first.rejected", "second", "third.rejected"]


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def write(_path: Path) -> None:
        raise ArtifactError("torch.onnx cannot export it.")

    with pytest.raises(RejectedArtifactsError) as caught:
        write_artifact(ArtifactRecipe(tmp_path / "model", "text", write, lambda _: PASSED))
    assert caught.value.rejected[0].path is None
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), r"out of memory\. Free"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("can't start new thread"), "no more threads could be started"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads could be started"),
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler found"), r"a C\+\+ compiler is missing"),
    ],
)
def test_a_fault_of_the_machine_is_told_as_such(tmp_path: Path, error: Exception, told: str) -> None:
    with pytest.raises(ArtifactError, match=f"could not be created and checked on this machine: {told}") as caught:
        write_artifact(recipe(tmp_path / "model", check=failing(error)))
    assert "Rewrite" not in str(caught.value)
    assert names(tmp_path) == ["model.rejected"]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_artifact(recipe(tmp_path / "model", check=failing(KeyboardInterrupt())))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="must be a writable folder with free space"):
        write_artifact(recipe(tmp_path / "file" / "model"))
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(DataError, match=r"must be a writable folder, but .*file is a file\. Give another"):
            require_folder(folder)
    require_folder(tmp_path / "new" / "folder")
    assert names(tmp_path) == ["file"]


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def export(self, *_arguments: object) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ArtifactError("A plugin says no."), "A plugin says no."),
        (DataError("The folder is gone."), "The folder is gone."),
        (RuntimeError("raw"), "RuntimeError: raw"),
    ],
)
def test_no_export_costs_the_model(error: Exception, reason: str, tmp_path: Path) -> None:
    calibrator: Any = Failing(error)
    artifacts, rejected = export_all(calibrator, torch.nn.Identity(), InputSpec((3,)), tmp_path)
    assert artifacts == ()
    assert [artifact.reason for artifact in rejected] == [reason]


def test_outputs_are_compared_by_class_and_by_deviation() -> None:
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.2, 0.1], [3.0, 2.0]])
    found = expected + torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.2], [0.0, 0.0]])
    agreement = compare(expected, found.numpy(), expected.shape[1])
    assert (agreement.samples, agreement.same_class) == (4, 0.75)
    assert agreement.largest == pytest.approx(0.2)
    assert agreement.deviation == pytest.approx(0.025 / expected.std(correction=0).item())
    assert compare(expected[:, 0], found[:, 0], len(expected)).same_class is None  # (samples,): not logits
    assert compare(expected, found * float("nan"), None).largest != 0
    broken = compare(expected * float("nan"), expected * float("nan"), expected.shape[1])
    assert broken.same_class == 0
    assert not broken.largest <= 1  # NaN passes no bound
    with pytest.raises(ArtifactError, match=r"\(4, 2\), but this one returns \(4, 1\)"):
        compare(expected, found[:, :1], expected.shape[1])


def test_a_failing_onnx_export_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Transposed(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.mT

    def write(path: Path) -> None:
        torch.onnx.export(Transposed(), (torch.zeros(1, 2, 3),), str(path), dynamo=False, opset_version=13)

    with pytest.raises(ArtifactError):
        write_artifact(ArtifactRecipe(tmp_path / "model.onnx", "ONNX", write, lambda _: ()))
    assert capfd.readouterr().out == ""


class TestManifest:
    @pytest.fixture
    def quantized(self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> Any:
        def run(folder: Path, network: nn.Module = tiny_network, **settings: Any) -> Any:
            settings = {"calibrator": "torch-ao", "spec": tiny_spec, "output": folder, **settings}
            return run_quantization(network, tiny_batches, **settings)

        return run

    def test_it_says_what_was_quantized_how_on_what_and_what_was_checked(
        self, quantized: Any, tiny_network: nn.Module, tmp_path: Path
    ) -> None:
        quantized(tmp_path / "out")
        record = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
        assert record["network"] == {"name": "TinyNetwork", "digest": model_digest(tiny_network)}
        (told,) = record["runs"]
        assert (told["calibrator"], told["recipe"]) == ("torch-ao", "w8a8")
        assert told["options"]["engine"]
        assert len(told["data"]["digest"]) == 64
        assert told["data"]["samples"] == 48
        assert told["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert told["command"]
        assert datetime.fromisoformat(told["date"]).tzinfo is not None
        (artifact,) = told["artifacts"]
        file = tmp_path / "out" / artifact["file"]
        assert artifact["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert artifact["checks"]

    def test_another_networks_folder_is_refused_before_any_work(
        self, quantized: Any, tiny_network: nn.Module, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        quantized(out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        other = copy.deepcopy(tiny_network)
        with torch.no_grad():
            other.linear.bias += 1
        with pytest.raises(DataError, match=r"out holds the artifacts of another network: TinyNetwork with the digest"):
            quantized(out, other)
        with pytest.raises(DataError, match="holds the artifacts of another network"):
            finetune(other, torch.randn(16, 3, 8, 8), calibrator="torch-ao", output=out)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        quantized(out)  # replaces its own files
        quantized(out, calibrator="pytorch-quantization")
        record = json.loads((out / MANIFEST_FILE).read_text())
        assert [run["calibrator"] for run in record["runs"]] == ["torch-ao", "pytorch-quantization"]

    def test_a_damaged_one(self, quantized: Any, tmp_path: Path) -> None:
        (tmp_path / MANIFEST_FILE).write_text("[]")
        with pytest.raises(DataError, match="is not a manifest of artifacts"):
            quantized(tmp_path)
