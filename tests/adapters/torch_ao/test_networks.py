"""Real networks on real images through torch.ao: a few images, to see that the accuracy survives."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dfq_plugins.types import InputSpec, Recipe
from dfq_torch_ao.calibrator import TorchAoCalibrator
from dfq_torch_ao.engines import reduces_range
from dfq_torch_ao.options import TorchAoOptions

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from torch import nn

RESNET = "resnet20_cifar10"
RESNET_SPEC = InputSpec((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.0, 1.0), 10)


@pytest.fixture(scope="module")
def networks(shared_data: Path) -> ModuleType:
    description = importlib.util.spec_from_file_location("networks_for_torch_ao", shared_data / "networks.py")
    assert description is not None
    assert description.loader is not None
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


def quantize(model: nn.Module, spec: InputSpec, inputs: torch.Tensor, recipe: str, **options: Any) -> nn.Module:
    calibrator = TorchAoCalibrator(TorchAoOptions(**options))
    prepared = calibrator.prepare(model, spec, Recipe.parse(recipe))
    calibrator.calibrate(prepared, inputs.split(64))
    return calibrator.convert(prepared)


@torch.no_grad()
def accuracy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    return (model(inputs).argmax(1) == labels).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "largest_drop"), [("w8a8", 0.02), ("w4a8", 0.06), ("w4a4", 0.2)])
def test_resnet20(networks: ModuleType, recipe: str, largest_drop: float) -> None:
    model = networks.build(RESNET)
    converted = quantize(model, RESNET_SPEC, networks.load_split("cifar10_train4096", RESNET)[0][:128], recipe)
    inputs, labels = (part[:500] for part in networks.load_split("cifar10_test", RESNET))
    assert accuracy(model, inputs, labels) - accuracy(converted, inputs, labels) < largest_drop
    assert len(TorchAoCalibrator().describe(converted).layers) == (30 if recipe.endswith("a8") else 29)


def test_dscnn(networks: ModuleType) -> None:
    name = "dscnn_kws_mlperftiny"
    model, (inputs, labels) = networks.build(name), networks.load_split("kws_test1000", name)
    converted = quantize(model, InputSpec((1, 49, 10), num_classes=12), inputs[:100], "w8a8", engine="onednn")
    # Seven bits of activations, on processors without VNNI, lose a little more.
    largest_drop = 0.02 if reduces_range(TorchAoOptions(), "onednn") else 0.01
    assert accuracy(model, inputs[200:], labels[200:]) - accuracy(converted, inputs[200:], labels[200:]) < largest_drop


@pytest.mark.slow
def test_mobilenet_needs_a_scale_per_channel(networks: ModuleType) -> None:
    name = "mobilenetv1_075_imagenet"
    model, spec = networks.build(name), InputSpec((3, 224, 224), (0.5,) * 3, (0.5,) * 3, (0.0, 1.0), 1000)
    inputs, labels = (part[:48].clone() for part in networks.load_split("imagenet_sample1000_224", name))
    per_channel = quantize(model, spec, inputs[:16], "w8a8", engine="onednn")
    assert accuracy(model, inputs[16:], labels[16:]) - accuracy(per_channel, inputs[16:], labels[16:]) < 0.1
    per_tensor = quantize(model, spec, inputs[:16], "w8a8", engine="onednn", per_channel=False)
    assert accuracy(per_tensor, inputs[16:], labels[16:]) < 0.1
