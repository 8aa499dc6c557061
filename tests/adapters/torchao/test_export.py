"""The files that torchao's models are written to: checked, loaded without pickle, and refused where they hold some."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import dfq_plugins as dfq
from dfq_plugins.errors import DataError, UsageError
from dfq_torchao import export
from dfq_torchao.aot_inductor import CompiledProgram
from dfq_torchao.calibrator import TorchaoCalibrator
from dfq_torchao.programs import load_program

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.quantization.result import QuantizationRun
    from dfq_plugins.types import InputSpec


@pytest.fixture
def run(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> QuantizationRun:
    return dfq.run_quantization(tiny_network, tiny_batches, calibrator="torchao", spec=tiny_spec, output=tmp_path)


def test_the_program_is_loaded_and_equal(
    run: QuantizationRun, tmp_path: Path, tiny_batches: list[torch.Tensor]
) -> None:
    (artifact,) = run.artifacts
    assert artifact.path == tmp_path / "model.exported.pt2"
    assert "maximum difference 0" in artifact.checks[0].detail
    loaded = dfq.load_quantized(tmp_path)
    for size in (1, 5):
        assert torch.equal(loaded(tiny_batches[0][:size]), run.model(tiny_batches[0][:size]))
    floats = sum(parameter.numel() for parameter in run.model.parameters())
    assert floats == 8 + 8 + 4  # the biases: int8 weights replaced the others


def test_nothing_in_the_file_is_pickled(run: QuantizationRun) -> None:
    with zipfile.ZipFile(run.artifacts[0].path) as archive:
        configs = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("_config.json")]
        assert not any(tensor["use_pickle"] for config in configs for tensor in config["config"].values())
        assert [info.file_size for info in archive.infolist() if info.filename.endswith(".pt")] == [0]


def rewritten(path: Path, change: Any) -> Path:
    """Return a copy of an archive in which `change(name, content)` stands for each file."""
    target = path.with_name("other.exported.pt2")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as other:
        for name in archive.namelist():
            other.writestr(name, change(name, archive.read(name)))
    return target


def with_pickled_weights(_name: str, content: bytes) -> bytes:
    return content.replace(b'"use_pickle": false', b'"use_pickle": true')


def with_example_inputs(name: str, content: bytes) -> bytes:
    return b"pickled" if name.endswith("sample_inputs/model.pt") else content


@pytest.mark.parametrize("change", [with_pickled_weights, with_example_inputs])
def test_pickled_objects_are_refused(change: Any, run: QuantizationRun) -> None:
    with pytest.raises(DataError, match="without pickled objects"):
        load_program(rewritten(run.artifacts[0].path, change))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    for ending in (export.EXPORTED, export.COMPILED):
        path = tmp_path / f"model{ending}"
        path.write_bytes(b"nothing")
        with pytest.raises(DataError, match="must be a readable"):
            TorchaoCalibrator().load(path)
    with pytest.raises(UsageError, match="end with"):
        TorchaoCalibrator().load(tmp_path / "model.onnx")


def test_a_program_that_differs_is_kept_as_rejected(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Shifted(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.mean((2, 3)).mean(1, keepdim=True).expand(-1, 4)

    monkeypatch.setattr(export, "load_program", lambda _: Shifted())
    run = dfq.run_quantization(tiny_network, tiny_batches, calibrator="torchao", spec=tiny_spec, output=tmp_path)
    (rejected,) = run.rejected
    assert "The exported program must compute what the torch model does" in rejected.reason
    assert rejected.path == tmp_path / "model.exported.pt2.rejected"


def test_a_missing_compiler_is_said(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compiling(*_arguments: Any, **_settings: Any) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiling)
    options = {"aot_inductor": True}
    run = dfq.run_quantization(
        tiny_network, tiny_batches, calibrator="torchao", spec=tiny_spec, output=tmp_path, options=options
    )
    assert [artifact.path.name for artifact in run.artifacts] == ["model.exported.pt2"]
    assert "on this machine: a C++ compiler is missing. Install one" in run.rejected[0].reason


class TestCompiledProgram:
    def test_any_number_of_samples_runs_in_batches_of_the_package(self) -> None:
        sizes = []

        def package(inputs: torch.Tensor, *, shift: torch.Tensor) -> Any:
            sizes.append(len(inputs))
            return {"sum": inputs + shift, "constant": torch.ones(())}

        program = CompiledProgram(package, 4)
        inputs, shift = torch.randn(10, 3), torch.randn(10, 1)
        returned = program(inputs, shift=shift)
        assert torch.equal(returned["sum"], inputs + shift)
        assert returned["constant"].shape == ()
        assert sizes == [4, 4, 4]
        assert program(inputs[:1], shift=shift[:1])["sum"].shape == (1, 3)


@pytest.mark.slow
@pytest.mark.processes
def test_a_fresh_process_loads_the_program(run: QuantizationRun, tmp_path: Path) -> None:
    code = (
        "import sys, torch, dfq_plugins as dfq\n"
        f"loaded = dfq.load_quantized({str(tmp_path)!r})\n"
        "torch.manual_seed(0)\n"
        "print(float(loaded(torch.rand(2, 3, 8, 8)).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch.manual_seed(0)
    assert float(done.stdout.split()[-1]) == pytest.approx(float(run.model(torch.rand(2, 3, 8, 8)).sum()), abs=1e-5)


@pytest.mark.slow
def test_the_compiled_package_agrees(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    options = {"aot_inductor": True, "compiled_batch": 4}
    run = dfq.run_quantization(
        tiny_network, tiny_batches, calibrator="torchao", spec=tiny_spec, output=tmp_path, options=options
    )
    assert not run.rejected
    compiled = dfq.load_quantized(tmp_path / "model.aotinductor.pt2")
    expected = run.model(tiny_batches[0])
    found = compiled(tiny_batches[0].to(memory_format=torch.channels_last))
    assert (found - expected).abs().mean() < 0.05 * expected.std()


def test_bytes_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/version", "3")
    path = tmp_path / "model.exported.pt2"
    path.write_bytes(content.getvalue())
    with pytest.raises(DataError, match="another kind of archive"):
        load_program(path)


@pytest.mark.slow
def test_executorch_runs_the_same_one_sample_at_a_time(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("executorch")
    options = {"quantizer": "xnnpack"}
    run = dfq.run_quantization(
        tiny_network, tiny_batches, calibrator="torchao", spec=tiny_spec, output=tmp_path, options=options
    )
    assert {artifact.path.name for artifact in run.artifacts} == {"model.exported.pt2", "model.pte"}
    program = dfq.load_quantized(tmp_path / "model.pte")
    expected = run.model(tiny_batches[0])
    assert (program(tiny_batches[0]) - expected).abs().mean() < 0.05 * expected.std()
