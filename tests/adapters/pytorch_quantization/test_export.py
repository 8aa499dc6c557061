"""The ONNX file of the pytorch-quantization calibrator: what is in it, and that a wrong one is never handed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dfq_plugins.errors import ArtifactError, DataError, UsageError
from dfq_plugins.types import InputSpec, Recipe
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_pytorch_quantization.framework import quant_nn
from dfq_pytorch_quantization.options import PytorchQuantizationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import Artifact


def quantize_and_export(
    model: nn.Module, spec: InputSpec, batches: list[torch.Tensor], folder: Path, recipe: str = "w8a8", **options: Any
) -> tuple[nn.Module, Artifact]:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(**{"activations": "max", **options}))
    prepared = calibrator.prepare(model, spec, Recipe.parse(recipe), training=False)
    calibrator.calibrate(prepared, batches)
    (artifact,) = calibrator.export(calibrator.convert(prepared), spec, folder)
    return prepared, artifact


def node_kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run_onnx(path: Path, inputs: torch.Tensor) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": inputs.numpy()})[0]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("w8a8", {}),
        ("w4a4", {}),
        ("w4a4", {"unsigned": False}),
        ("w8a7", {"unsigned": True}),
        ("w2a6", {"per_channel": False}),
        ("w4a4", {"input_bits": 4, "activations": "mse"}),
    ],
)
def test_onnx_runtime_computes_what_the_fake_quantized_model_does(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    tmp_path: Path,
    recipe: str,
    options: dict[str, Any],
) -> None:
    model, artifact = quantize_and_export(tiny_network, tiny_spec, tiny_batches, tmp_path / "out", recipe, **options)
    kinds = node_kinds(artifact.path)
    # Three inputs, three weights, and the shortcut, which is the convolution's own input where both have 8 bits.
    expected_pairs = 6 if options.get("unsigned") is None and recipe == "w8a8" else 7
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == expected_pairs
    assert artifact.size_bytes == artifact.path.stat().st_size
    inputs = torch.randn(5, 3, 8, 8)  # a batch size, and values, that the export never saw
    with torch.no_grad():
        expected = model(inputs).numpy()
    assert np.abs(run_onnx(artifact.path, inputs) - expected).mean() < 0.02 * expected.std()
    assert [path.name for path in artifact.path.parent.iterdir()] == ["model_qdq.onnx"]


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
def test_stored_weights_have_the_levels_of_the_recipe(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path, recipe: str
) -> None:
    _, artifact = quantize_and_export(tiny_network, tiny_spec, tiny_batches, tmp_path, recipe)
    graph = onnx.load(artifact.path).graph
    constants = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant"
    }
    constants |= {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantize_nodes = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in constants]
    assert len(quantize_nodes) == 3
    bits = Recipe.parse(recipe).weight_bits
    for node in quantize_nodes:
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        integers = np.rint(weight / scale.reshape(-1, *(1,) * (weight.ndim - 1)))
        assert scale.shape == weight.shape[:1]
        assert integers.min() >= -(2 ** (bits - 1))
        assert integers.max() == 2 ** (bits - 1) - 1


def test_checks_state_their_figures(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    _, artifact = quantize_and_export(tiny_network, tiny_spec, tiny_batches, tmp_path, "w4a8")
    structure, rules, integers, whole, default = artifact.checks
    assert structure.detail == (
        "6 pairs of QuantizeLinear and DequantizeLinear feed 7 quantized inputs and weights; 4-bit levels are stored "
        "in int8; opset 17, a batch of any size"
    )
    assert rules.detail.startswith("passed: pairs, scales, zero points, ")
    assert " weights are equal on 16 samples, each layer fed the same inputs" in integers.detail
    assert whole.detail.startswith("16 samples: top-1 agreement 100.0%, maximum difference ")
    assert "for information" in default.name


def test_export_leaves_the_model_and_the_framework_as_they_were(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    calibrator = PytorchQuantizationCalibrator()
    prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(4, 4), training=False)
    calibrator.calibrate(prepared, tiny_batches)
    with torch.no_grad():
        before = prepared(tiny_batches[0])
        calibrator.export(prepared, tiny_spec, tmp_path)
        assert torch.equal(prepared(tiny_batches[0]), before)
    assert quant_nn.TensorQuantizer.use_fb_fake_quant is False
    assert prepared.get_submodule("conv.input_quantizer").num_bits == 4


def test_another_calibrator_object_exports_and_only_a_calibrated_model(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    model, _ = quantize_and_export(tiny_network, tiny_spec, tiny_batches, tmp_path)
    (artifact,) = PytorchQuantizationCalibrator().export(model, tiny_spec, tmp_path)
    assert "16 samples" in artifact.checks[2].detail
    prepared = PytorchQuantizationCalibrator().prepare(tiny_network, tiny_spec, Recipe(8, 8), training=False)
    with pytest.raises(UsageError, match=r"Only a calibrated model can be exported\. Call calibrate\(\)"):
        PytorchQuantizationCalibrator().export(prepared, tiny_spec, tmp_path)


def test_outputs_that_are_no_classes_are_compared_by_value(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 2, stride=2))
    inputs = torch.randn(8, 3, 8, 8)
    _, artifact = quantize_and_export(model, InputSpec((3, 8, 8)), [inputs], tmp_path, "w4a8")
    assert artifact.checks[3].detail.startswith("8 samples: maximum difference ")


class FixedBatch(nn.Module):
    """Takes the batch size as a constant when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs).reshape(int(inputs.shape[0]), 2)


class NotExportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.special.i1(inputs))


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python integer:torch.jit.TracerWarning")
def test_a_file_that_takes_one_batch_size_alone_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ONNX Runtime cannot run .*batch"):
        quantize_and_export(FixedBatch(), InputSpec((4,)), [torch.randn(8, 4)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model_qdq.onnx.rejected"]


def test_what_torch_cannot_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"torch\.onnx cannot export .*i1.*rewrite the operation"):
        quantize_and_export(NotExportable(), InputSpec((4,)), [torch.randn(8, 4)], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"must be a writable folder with free space"):
        quantize_and_export(tiny_network, tiny_spec, tiny_batches, tmp_path / "file")
