"""Faults planted in exported ONNX files: the check of each adapter finds every one, and names the layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dfq_brevitas import export as brevitas_export
from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_plugins.errors import ArtifactError
from dfq_plugins.types import InputSpec, Recipe
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_shared.tensorrt import export as pytorch_quantization_export

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import nn

FILES = {"QONNX": "model.qonnx.onnx", "QCDQ": "model.qcdq.onnx", "QDQ": "model_qdq.onnx"}


class Exported:
    """A sound file of one format, and the check that it passed."""

    def __init__(self, path: Path, check: Callable[[Path], object], output_channels: int) -> None:
        self.path, self.check, self.output_channels = path, check, output_channels
        self.proto = onnx.load(path)

    def refused(self, folder: Path) -> str:
        spoilt = folder / "spoilt.onnx"
        onnx.save(self.proto, spoilt)
        with pytest.raises(ArtifactError) as caught:
            self.check(spoilt)
        return str(caught.value)

    def constant(self, name: str) -> Any:
        found = next((tensor for tensor in self.proto.graph.initializer if tensor.name == name), None)
        if found is not None:
            return found
        node = next(node for node in self.proto.graph.node if name in node.output and node.op_type == "Constant")
        return node.attribute[0].t

    def change(self, name: str, change: Callable[[Any], Any]) -> None:
        tensor = self.constant(name)
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), tensor.name))

    def weight_nodes(self) -> list[Any]:
        """Return the nodes that hold the scale of the convolution `conv`'s weight, 8 x 8 x 3 x 3."""
        kinds = ("Quant", "QuantizeLinear", "DequantizeLinear")
        return [node for node in self.proto.graph.node if node.op_type in kinds and self.shape(node) == (8, 8, 3, 3)]

    def shape(self, node: Any) -> tuple[int, ...]:
        producers = {name: node for node in self.proto.graph.node for name in node.output}
        name = node.input[0]
        while name in producers and producers[name].op_type in ("Clip", "QuantizeLinear"):
            name = producers[name].input[0]
        try:
            return tuple(self.constant(name).dims)
        except StopIteration:
            return ()

    def activation_quantizers(self) -> list[Any]:
        return [
            node
            for node in self.proto.graph.node
            if node.op_type in ("Quant", "QuantizeLinear") and not self.shape(node) and node.input[0] != "input"
        ]


@pytest.fixture(params=FILES)
def exported(
    request: pytest.FixtureRequest,
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    tmp_path: Path,
) -> Exported:
    form, recipe = request.param, Recipe(4, 4)
    calibrator: Any = PytorchQuantizationCalibrator() if form == "QDQ" else BrevitasCalibrator()
    prepared = calibrator.prepare(tiny_network, tiny_spec, recipe, training=False)
    calibrator.calibrate(prepared, tiny_batches)
    converted = calibrator.convert(prepared)
    calibrator.export(converted, tiny_spec, tmp_path)
    settings: dict[str, Any] = {"samples": tiny_batches[0], "spec": tiny_spec}

    def check(path: Path) -> object:
        if form == "QDQ":
            return pytorch_quantization_export.check_file(path, model=converted, **settings)
        return getattr(brevitas_export, f"check_{form.lower()}")(path, graph=converted, **settings)

    return Exported(tmp_path / FILES[form], check, output_channels=8)


@pytest.mark.slow
def test_a_sound_file_passes(exported: Exported) -> None:
    assert exported.check(exported.path)


@pytest.mark.slow
def test_a_weight_scale_that_is_wrong_by_five_percent(exported: Exported, tmp_path: Path) -> None:
    for name in {node.input[1] for node in exported.weight_nodes()}:
        exported.change(name, lambda scale: scale * 1.05)
    assert re.search("conv.weight: |has its output channels on axis 0", exported.refused(tmp_path))


@pytest.mark.slow
def test_an_activation_scale_that_is_wrong_by_five_percent(exported: Exported, tmp_path: Path) -> None:
    name = exported.activation_quantizers()[0].input[1]
    exported.change(name, lambda scale: scale * 1.05)
    assert "different scale" in exported.refused(tmp_path)


@pytest.mark.slow
def test_one_channel_of_weights_that_is_off_by_one_step(exported: Exported, tmp_path: Path) -> None:
    node = exported.weight_nodes()[0]
    scale = numpy_helper.to_array(exported.constant(node.input[1])).reshape(-1)

    def shifted(weight: Any) -> Any:
        changed = weight.copy()
        step = 1 if weight.dtype == np.int8 else scale[3]
        changed[3] -= np.sign(weight[3]) * step
        return changed

    producers = {name: node for node in exported.proto.graph.node for name in node.output}
    name = node.input[0]
    while name in producers and producers[name].op_type != "Constant":
        name = producers[name].input[0]
    exported.change(name, shifted)
    told = exported.refused(tmp_path)
    assert "conv.weight: " in told
    assert "of 576 integers are not torch's, by up to 1 steps" in told


@pytest.mark.slow
def test_a_quantizer_that_is_missing(exported: Exported, tmp_path: Path) -> None:
    node = exported.activation_quantizers()[1]
    end = node.output[0]
    while node.op_type != "Quant" and not any(
        reader.op_type == "DequantizeLinear" and end in reader.input for reader in exported.proto.graph.node
    ):
        end = next(reader.output[0] for reader in exported.proto.graph.node if end in reader.input)
    if node.op_type != "Quant":
        end = next(reader.output[0] for reader in exported.proto.graph.node if end in reader.input)
    for reader in exported.proto.graph.node:
        for index, name in enumerate(reader.input):
            if name == end:
                reader.input[index] = node.input[0]
    assert exported.refused(tmp_path)


@pytest.mark.slow
def test_an_axis_that_is_wrong(exported: Exported, tmp_path: Path) -> None:
    for node in exported.weight_nodes():
        if node.op_type == "Quant":
            exported.change(node.input[1], lambda scale: scale.reshape(1, -1, 1, 1))
            continue
        for attribute in node.attribute:
            if attribute.name == "axis":
                attribute.i = 1
    assert re.search("conv.weight: |has its output channels on axis 0", exported.refused(tmp_path))
