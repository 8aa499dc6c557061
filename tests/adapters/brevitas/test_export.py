"""QONNX and QCDQ files of the calibrator "brevitas": run by their own runtimes and compared, or not handed over."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dfq_brevitas import export
from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_brevitas.options import BrevitasOptions
from dfq_brevitas.qonnx_lowering import lowered
from dfq_plugins.errors import ArtifactError, DataError, UsageError
from dfq_plugins.quantization.artifacts import RejectedArtifactsError
from dfq_plugins.quantization.onnx_runtime import exact_session, run_session
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_brevitas.framework import GraphModule


def run_onnx_runtime(path: Path, inputs: Any) -> Any:
    return run_session(exact_session(path), {"input": inputs})[0]


@pytest.fixture
def converted(tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> GraphModule:
    calibrator = BrevitasCalibrator()
    prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(4, 4))
    calibrator.calibrate(prepared, tiny_batches)
    return calibrator.convert(prepared)


def test_both_files_are_written_run_and_compared(
    converted: GraphModule, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    before = converted(tiny_batches[0])
    qonnx, qcdq = BrevitasCalibrator().export(converted, tiny_spec, tmp_path / "new")
    assert (qonnx.path.name, qonnx.format) == ("model.qonnx.onnx", "QONNX")
    assert (qcdq.path.name, qcdq.format) == ("model.qcdq.onnx", "QCDQ ONNX")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"model.qonnx.onnx", "model.qcdq.onnx"}
    for artifact in (qonnx, qcdq):
        assert artifact.size_bytes == artifact.path.stat().st_size
        integers, whole = artifact.checks[:2]
        assert " weights are equal on 16 samples, each layer fed the same inputs; outputs within " in integers.detail
        assert whole.detail.startswith("16 samples: top-1 agreement 100.0%, maximum difference ")
    torch.testing.assert_close(converted(tiny_batches[0]), before)


def test_files_hold_the_quantizers_and_run_on_other_data(
    converted: GraphModule, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    qonnx, qcdq = BrevitasCalibrator().export(converted, tiny_spec, tmp_path)
    inputs = tiny_batches[1][:3]
    with torch.no_grad():
        expected = converted(inputs)
    for artifact, run in ((qonnx, export.run_qonnx), (qcdq, run_onnx_runtime)):
        torch.testing.assert_close(torch.from_numpy(run(artifact.path, inputs.numpy())), expected, atol=1e-4, rtol=1e-4)
    kinds = Counter(node.op_type for node in onnx.load(qonnx.path).graph.node)
    assert kinds["Quant"] >= 3 + 5  # three weights; input, two ReLUs, addition, classifier input; and biases
    assert {"QuantizeLinear", "DequantizeLinear", "Clip"} <= {node.op_type for node in onnx.load(qcdq.path).graph.node}


@pytest.mark.slow
def test_files_hold_additions_as_narrow_as_all_others(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    calibrator = BrevitasCalibrator(BrevitasOptions(input_bits=4, addition_bits=4))
    prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(4, 4))
    calibrator.calibrate(prepared, tiny_batches)
    artifacts = calibrator.export(calibrator.convert(prepared), tiny_spec, tmp_path)
    assert [artifact.checks[1].detail.split(",")[0] for artifact in artifacts] == [
        "16 samples: top-1 agreement 100.0%"
    ] * 2


@pytest.mark.slow
def test_a_file_that_disagrees_is_kept_as_rejected_and_the_other_one_is_written(
    converted: GraphModule, tiny_spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export._write_qonnx

    def spoilt(graph: GraphModule, *arguments: Any) -> None:
        altered = copy.deepcopy(graph)
        altered.linear.weight.data.neg_()
        write(altered, *arguments)

    monkeypatch.setattr(export, "_write_qonnx", spoilt)
    with pytest.raises(RejectedArtifactsError, match=r"linear\.weight: 30 of 32 integers") as caught:
        BrevitasCalibrator().export(converted, tiny_spec, tmp_path)
    (rejected,) = caught.value.rejected
    assert (rejected.name, rejected.format, rejected.path) == (
        "model.qonnx.onnx",
        "QONNX",
        tmp_path / "model.qonnx.onnx.rejected",
    )
    assert rejected.faults[0].startswith("linear.weight: ")
    assert [artifact.path.name for artifact in caught.value.artifacts] == ["model.qcdq.onnx"]
    assert {path.name for path in tmp_path.iterdir()} == {"model.qonnx.onnx.rejected", "model.qcdq.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [Recipe(4, 4), Recipe(1, 8), Recipe(3, 32)])
def test_the_lowered_file_computes_what_qonnx_does(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path, recipe: Recipe
) -> None:
    calibrator = BrevitasCalibrator()
    prepared = calibrator.prepare(tiny_network, tiny_spec, recipe)
    calibrator.calibrate(prepared, tiny_batches)
    qonnx, *_ = calibrator.export(calibrator.convert(prepared), tiny_spec, tmp_path)
    model, _ = lowered(onnx.load(qonnx.path))
    session = exact_session(model.SerializeToString())
    inputs = tiny_batches[1][:2].numpy()
    expected = export.run_qonnx(qonnx.path, inputs)
    found = [run_session(session, {model.graph.input[0].name: sample[None]})[0] for sample in inputs]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-6)  # sums in another order


def test_an_operation_without_onnx_form(tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path) -> None:
    class Unexportable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.special.i0e(self.conv(inputs)).mean((2, 3))

    calibrator = BrevitasCalibrator()
    prepared = calibrator.prepare(Unexportable(), tiny_spec, Recipe(8, 8))
    calibrator.calibrate(prepared, tiny_batches)
    with pytest.raises(ArtifactError, match="This model has no QONNX form that runs"):
        calibrator.export(calibrator.convert(prepared), tiny_spec, tmp_path)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".rejected")]


def test_a_folder_that_cannot_be_written(converted: GraphModule, tiny_spec: InputSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="must be a writable folder with free space"):
        BrevitasCalibrator().export(converted, tiny_spec, tmp_path / "file")


def test_another_input_shape_is_refused(converted: GraphModule, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the model was prepared with, \(3, 8, 8\), got \(1, 8, 8\)"):
        BrevitasCalibrator().export(converted, InputSpec((1, 8, 8)), tmp_path)
