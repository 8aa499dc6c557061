"""The TorchScript file of torch.ao: checked before it is handed over, never half-written."""

from __future__ import annotations

import linecache
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.errors import ArtifactError, DataError
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.types import InputSpec, Recipe
from dfq_torch_ao import export
from dfq_torch_ao.calibrator import TorchAoCalibrator
from dfq_torch_ao.notices import NOTICES
from dfq_torch_ao.options import TorchAoOptions

if TYPE_CHECKING:
    from pathlib import Path

    from torch.fx import GraphModule

W8A8 = Recipe(8, 8)


def quantize(
    model: nn.Module, spec: InputSpec, batches: list[torch.Tensor], recipe: Recipe = W8A8, **options: object
) -> GraphModule:
    calibrator = TorchAoCalibrator(TorchAoOptions(**options))  # type: ignore[arg-type]
    prepared = calibrator.prepare(model, spec, recipe)
    calibrator.calibrate(prepared, batches)
    return calibrator.convert(prepared)


@pytest.mark.parametrize("recipe", [W8A8, Recipe(4, 4)])
@pytest.mark.parametrize("engine", ["auto", "qnnpack"])
def test_the_file_computes_what_the_model_does(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    tmp_path: Path,
    recipe: Recipe,
    engine: str,
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, recipe, engine=engine)
    (artifact,) = TorchAoCalibrator().export(converted, tiny_spec, tmp_path / "new" / "folder")
    assert artifact.path == tmp_path / "new" / "folder" / "model.torchscript.pt"
    assert [path.name for path in artifact.path.parent.iterdir()] == ["model.torchscript.pt"]
    assert artifact.size_bytes == artifact.path.stat().st_size
    used = torch.backends.quantized.engine if engine == "auto" else engine
    assert [check.detail for check in artifact.checks] == [
        f"torch.jit.script, for torch.backends.quantized.engine = {used!r}",
        (
            "on random inputs, 16 samples: top-1 agreement 100.0%, maximum difference 0, mean 0.00% of the outputs' "
            "standard deviation"
        ),
    ]


@pytest.mark.slow
def test_the_file_needs_torch_only(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, Recipe(4, 4))
    (artifact,) = TorchAoCalibrator().export(converted, tiny_spec, tmp_path)
    torch.save(tiny_batches[0], tmp_path / "inputs.pt")
    code = (
        "import sys, torch; sys.modules['dfq_torch_ao'] = sys.modules['dfq_plugins'] = None\n"
        f"model = torch.jit.load({str(artifact.path)!r})\n"
        f"torch.save(model(torch.load({str(tmp_path / 'inputs.pt')!r})), {str(tmp_path / 'outputs.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "outputs.pt"), converted(tiny_batches[0]))


def test_torch_export_still_refuses_packed_weights(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    """Once a release of torch allows it, export `torch.export` programs as well, and change docs/how-to/torch-ao.md."""
    converted = quantize(tiny_network, tiny_spec, tiny_batches)
    with pytest.raises(Exception, match="__obj_flatten__"):
        torch.export.export(converted, (tiny_batches[0],))


class TestAFailingCheck:
    def test_keeps_the_file_as_rejected_and_leaves_an_older_one(
        self,
        tiny_network: nn.Module,
        tiny_spec: InputSpec,
        tiny_batches: list[torch.Tensor],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches)
        (artifact,) = TorchAoCalibrator().export(converted, tiny_spec, tmp_path)
        before = artifact.path.read_bytes()
        monkeypatch.setattr(export, "load_torchscript", lambda _: tiny_network)  # computes something else
        engine = torch.backends.quantized.engine
        with pytest.raises(ArtifactError) as caught:
            TorchAoCalibrator().export(converted, tiny_spec, tmp_path)
        assert "must compute what the torch model does, but on 16 samples: top-1 agreement" in str(caught.value)
        assert "The file was kept as model.torchscript.pt.rejected" in str(caught.value)
        assert {path.name for path in tmp_path.iterdir()} == {"model.torchscript.pt", "model.torchscript.pt.rejected"}
        assert artifact.path.read_bytes() == before
        assert torch.backends.quantized.engine == engine

    def test_nothing_is_left_in_a_new_folder(
        self,
        tiny_network: nn.Module,
        tiny_spec: InputSpec,
        tiny_batches: list[torch.Tensor],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def interrupted(_: Path) -> nn.Module:
            raise KeyboardInterrupt

        converted = quantize(tiny_network, tiny_spec, tiny_batches)
        monkeypatch.setattr(export, "load_torchscript", interrupted)
        with pytest.raises(KeyboardInterrupt):
            TorchAoCalibrator().export(converted, tiny_spec, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_not_a_number_is_a_difference(
        self,
        tiny_network: nn.Module,
        tiny_spec: InputSpec,
        tiny_batches: list[torch.Tensor],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches)
        monkeypatch.setattr(export, "load_torchscript", lambda _: lambda inputs: converted(inputs) * float("nan"))
        with pytest.raises(ArtifactError, match="maximum difference nan"):
            TorchAoCalibrator().export(converted, tiny_spec, tmp_path)


def test_a_folder_that_cannot_be_written(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"must be a writable folder with free space: .* Give another folder"):
        TorchAoCalibrator().export(converted, tiny_spec, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


class Unscriptable(nn.Module):
    """TorchScript's compiler knows no lambdas; a recorded run does not see it."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        double = lambda value: value * 2  # noqa: E731
        return double(inputs)


class Frozen(nn.Module):
    """Neither compiles nor can it be recorded for other batch sizes."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        double = lambda value: torch.from_numpy(value.numpy()) * 2  # noqa: E731
        return double(inputs)


def network_around(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.Conv2d(4, 4, 3)).eval()


def test_code_that_does_not_compile_is_recorded(tiny_batches: list[torch.Tensor], tmp_path: Path) -> None:
    spec = InputSpec((3, 8, 8))
    converted = quantize(network_around(Unscriptable()), spec, tiny_batches, non_traceable=("1",))
    (artifact,) = TorchAoCalibrator().export(converted, spec, tmp_path)
    assert artifact.checks[0].detail.startswith("torch.jit.trace, for")
    with silenced(NOTICES):
        loaded = torch.jit.load(artifact.path)
    assert torch.equal(loaded(tiny_batches[0]), converted(tiny_batches[0]))


@pytest.mark.filterwarnings("ignore:Converting a tensor to a NumPy array:torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:torch.from_numpy results are registered as constants:torch.jit.TracerWarning")
def test_a_program_for_one_batch_size_only_is_not_handed_over(tiny_batches: list[torch.Tensor], tmp_path: Path) -> None:
    spec = InputSpec((3, 8, 8))
    converted = quantize(network_around(Frozen()), spec, tiny_batches, non_traceable=("1",))
    with pytest.raises(ArtifactError, match=r"must return what the torch model does, \(1, 4, 4, 4\)"):
        TorchAoCalibrator().export(converted, spec, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.torchscript.pt.rejected"]


def test_a_model_without_torchscript_form(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> nn.Module:
        raise RuntimeError("no such operator")

    converted = quantize(tiny_network, tiny_spec, tiny_batches)
    monkeypatch.setattr(torch.jit, "script", fail)
    monkeypatch.setattr(torch.jit, "trace", fail)
    with pytest.raises(ArtifactError, match=r"This model has no TorchScript form: no such operator\. Rewrite"):
        TorchAoCalibrator().export(converted, tiny_spec, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_program_under_the_same_made_up_file_name_is_not_compiled(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    """Brevitas's copy of FX hands out the same file names, so another model's source may lie under ours."""
    converted = quantize(tiny_network, tiny_spec, tiny_batches, W8A8)
    name = type(converted).forward.__code__.co_filename
    foreign = (1, None, ["def forward(self, inputs : nonsense): return inputs\n"], name)
    before = linecache.cache.get(name)
    linecache.cache[name] = foreign
    try:
        (artifact,) = TorchAoCalibrator().export(converted, tiny_spec, tmp_path)
        assert linecache.cache[name] is foreign
    finally:
        linecache.cache.pop(name)
        if before is not None:
            linecache.cache[name] = before
    assert artifact.checks[0].detail.startswith("torch.jit.script")
