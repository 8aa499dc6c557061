"""ONNX files in: what works, and what is refused before any work."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from torch import nn

import dfq_plugins as dfq
from command_line import run as run_dfq
from dfq_plugins.errors import DfqError, DfqWarning, ModelError, UsageError
from dfq_plugins.quantization.onnx_file import read_network
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.quantization.result import QuantizationRun

SAMPLES = torch.randn(22, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class _Two(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.meta, self.head = nn.Conv1d(3, 8, 3), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor, meta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.relu(self.conv(image)).mean(2)
        return self.head(pooled * torch.sigmoid(self.meta(meta))), pooled


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()


def written(
    folder: Path, *, opset: int = 17, batch: int | None = None, name: str = "network.onnx", **settings: object
) -> Path:
    """Write the network as a file, for any batch size unless one is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network(),
            (SAMPLES[: batch or 2],),
            str(folder / name),
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes=None if batch else {"image": {0: "n"}, "logits": {0: "n"}},
            **settings,
        )
    return folder / name


def quantize(path: Path | str, samples: object = SAMPLES, **settings: object) -> QuantizationRun:
    return dfq.run_quantization(path, samples, calibrator="onnxruntime", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_is_quantized_exported_and_loaded(tmp_path: Path, as_text: bool) -> None:
    path = written(tmp_path)
    run = quantize(str(path) if as_text else path, output=tmp_path / "out")
    (artifact,) = run.artifacts
    assert artifact.path.name == "model_int8.onnx"
    assert run.output_agreement[0].decibels > 25
    assert len(run.coverage.layers) == 2
    loaded = dfq.load_quantized(artifact.path)
    assert torch.equal(loaded(SAMPLES), run.model(SAMPLES))
    proto = onnx.load(artifact.path)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["image", "logits"]


@pytest.mark.parametrize(
    "settings",
    [
        {"opset": 9},
        {"opset": 11},
        {"keep_initializers_as_inputs": True},
        {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE},
    ],
    ids=["opset 9", "opset 11", "overridable weights", "unfolded"],
)
def test_older_files_are_brought_up_to_date(tmp_path: Path, settings: dict[str, object]) -> None:
    expected = quantize(written(tmp_path)).model(SAMPLES)
    found = quantize(written(tmp_path, name="older.onnx", **settings)).model(SAMPLES)  # type: ignore[arg-type]
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("recipe", ["w4a8", "w8a16"])
def test_recipes_that_need_newer_operators(tmp_path: Path, recipe: str) -> None:
    run = quantize(written(tmp_path), recipe=recipe, output=tmp_path / "out")
    opset = {entry.domain: entry.version for entry in onnx.load(run.artifacts[0].path).opset_import}
    assert opset == {"": 21}


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    expected = quantize(path).model(SAMPLES)
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(path), outside, save_as_external_data=True, location="weights", size_threshold=0)
    assert torch.equal(quantize(outside).model(SAMPLES), expected)
    (tmp_path / "weights").unlink()
    with pytest.raises(ModelError, match=r"must be a readable ONNX file, but: .* with the files of its tensors next"):
        quantize(outside)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_size(tmp_path: Path, batch: int) -> None:
    path = written(tmp_path, batch=batch)
    whole = 22 % batch == 0
    with warnings.catch_warnings() if whole else pytest.warns(DfqWarning, match="the last 2 of 22 samples"):
        run = quantize(path, output=tmp_path / "out")
    assert run.output_agreement[0].samples == 22
    assert run.output_agreement[0].decibels > 25
    assert torch.equal(dfq.load_quantized(tmp_path / "out")(SAMPLES[:8]), run.model(SAMPLES[:8]))
    assert onnx.load(run.artifacts[0].path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch


def test_several_inputs_have_their_names_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = {"meta": torch.randn(20, 4), "image": torch.randn(20, 3, 9)}
    path = tmp_path / "two.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Two().eval(),
            (data["image"][:2], data["meta"][:2]),
            str(path),
            dynamo=False,
            input_names=["image", "meta"],
            output_names=["scores", "features"],
            dynamic_axes={name: {0: "n"} for name in ("image", "meta", "scores", "features")},
        )
    run = quantize(path, data, output=tmp_path / "out")
    assert [found.name for found in run.output_agreement] == ["scores", "features"]
    assert min(found.decibels for found in run.output_agreement) > 20
    assert torch.equal(dfq.load_quantized(tmp_path / "out")(data)["scores"], run.model(data)["scores"])
    with pytest.raises(DfqError, match="takes the inputs image, meta, got picture, meta"):
        quantize(path, {"picture": data["image"], "meta": data["meta"]})


@pytest.mark.parametrize(
    "shape", [(3, 8), (1, 8, 8), (3, 9, 8)], ids=["another rank", "other channels", "another size"]
)
def test_data_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"must have the shape \(samples, 3, 8, 8\), got \(2, "):
        quantize(written(tmp_path), torch.randn(4, *shape))


def test_a_quantized_file_is_refused(tmp_path: Path) -> None:
    path = quantize(written(tmp_path), output=tmp_path / "out").artifacts[0].path
    with pytest.raises(ModelError, match="already quantized: it has DequantizeLinear, QuantizeLinear"):
        quantize(path)


@pytest.mark.parametrize("keep_io_types", [False, True])
def test_half_precision_is_refused(tmp_path: Path, keep_io_types: bool) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = tmp_path / "half.onnx"
    onnx.save(convert_float_to_float16(onnx.load(written(tmp_path)), keep_io_types=keep_io_types), path)
    with pytest.raises(ModelError, match=r"float32 network is needed, but .* computes in float16 \(tensor "):
        quantize(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.onnx", tmp_path / "empty.onnx"
    broken.write_bytes(b"not a network" * 9)
    empty.write_bytes(b"")
    with pytest.raises(ModelError, match="must be a readable ONNX file, but: "):
        quantize(broken)
    with pytest.raises(ModelError, match="no content"):
        quantize(empty)
    with pytest.raises(ModelError, match="does not exist"):
        quantize(tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match=r"a torch module or the path of an ONNX file, \*.onnx, got 'weights.pt'"):
        quantize("weights.pt")


def test_integer_inputs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ids.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            nn.Embedding(9, 4), (torch.zeros(2, 3, dtype=torch.long),), str(path), dynamo=False, input_names=["ids"]
        )
    with pytest.raises(UsageError, match=r"must be float32, but 'ids' .* is not. Integers, such as token ids"):
        quantize(path, torch.randn(4, 3))


@pytest.mark.parametrize("calibrator", ["torch-ao", "brevitas", "pytorch-quantization"])
def test_other_calibrators_name_the_one_that_takes_files(tmp_path: Path, calibrator: str) -> None:
    path = written(tmp_path)
    for given in (path, read_network(path)):
        with pytest.raises(UsageError, match=r"takes torch networks, got the file .*Use the calibrator 'onnxruntime'"):
            dfq.run_quantization(given, SAMPLES, calibrator=calibrator)  # type: ignore[arg-type]


def test_what_needs_layers_or_gradients_is_refused(tmp_path: Path) -> None:
    path = str(written(tmp_path))
    for call in (
        lambda: dfq.synthesize(path, InputSpec((3, 8, 8)), num_samples=4),  # type: ignore[arg-type]
        lambda: dfq.finetune(path, SAMPLES, calibrator="onnxruntime"),  # type: ignore[arg-type]
        lambda: dfq.prune(path, SAMPLES, macs=0.5),  # type: ignore[arg-type]
    ):
        with pytest.raises(ModelError, match=r"layers and gradients are used, got the ONNX file .*Only calibration"):
            call()


def test_the_command_line(tmp_path: Path) -> None:
    path, spec = written(tmp_path), InputSpec((3, 8, 8), num_classes=5)
    dfq.synthesize(network(), spec, generator="gaussian", num_samples=32, output=tmp_path / "set")
    given = ["quantize", path, tmp_path / "set", "--calibrator", "onnxruntime", "-O", "method=percentile"]
    found = json.loads(run_dfq(*given, "-o", tmp_path / "out", "--report", tmp_path / "run.html", "--json").stdout)
    assert found["agreement"] > 0.8
    assert (tmp_path / "out" / "model_int8.onnx").is_file()
    assert (tmp_path / "run.html").is_file()
    assert "includes its weights" in run_dfq(*given, "--weights", "w.pt", code=2).output
    assert "'onnxruntime'" in run_dfq("quantize", path, tmp_path / "set", "--calibrator", "torch-ao", code=2).output
    refused = run_dfq("synthesize", path, "--num-samples", 4, "-o", tmp_path / "other", code=2)
    assert "whose layers and gradients are used, got the ONNX file" in refused.output
    assert "got the ONNX file" in run_dfq(*given, "--finetune", code=2).output
