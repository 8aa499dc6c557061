"""What torchvision's own models take, told by the presets of their published weights."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from dfq_plugins.host.registry import build_registry
from dfq_plugins.network.torchvision_spec import dfq_infer_input_spec
from dfq_plugins.types import InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(name: str, **settings: Any) -> nn.Module:
    """Build without memory or time: on the meta device a model is its structure alone."""
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 224),
        ("mobilenet_v2", 224),
        ("densenet121", 224),
        ("efficientnet_b0", 224),
        ("efficientnet_b4", 380),
        ("squeezenet1_1", 224),
    ],
)
@pytest.mark.parametrize("classes", [1000, 10])
def test_size_and_normalization_of_published_models(name: str, side: int, classes: int) -> None:
    expected = InputSpec((3, side, side), MEAN, STD, (0.0, 1.0), classes)
    assert dfq_infer_input_spec(build(name, num_classes=classes)) == expected


@pytest.mark.parametrize(("head", "classes"), [(nn.Linear(512, 1), 0), (nn.Linear(512, 7), 7), (nn.Identity(), None)])
def test_a_replaced_last_layer_says_whether_it_is_still_a_classifier(head: nn.Module, classes: int | None) -> None:
    network = build("resnet18")
    network.fc = head
    spec = dfq_infer_input_spec(network)
    assert spec is not None
    assert spec.num_classes == classes


def test_inception_takes_299_pixels() -> None:
    spec = dfq_infer_input_spec(build("inception_v3", init_weights=False))
    assert spec is not None
    assert spec.shape == (3, 299, 299)


def test_a_preset_with_a_normalization_of_its_own() -> None:
    spec = dfq_infer_input_spec(build("efficientnet_v2_l"))
    assert spec == InputSpec((3, 480, 480), (0.5,) * 3, (0.5,) * 3, (0.0, 1.0), 1000)


def test_it_agrees_with_torchvision_s_transform() -> None:
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    pixels = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = dfq_infer_input_spec(build("resnet18"))
    assert spec is not None
    assert spec.bounds is not None
    expected = weights.transforms(resize_size=224)(pixels)
    low, high = (torch.tensor(edge).view(3, 1, 1) for edge in spec.bounds)
    torch.testing.assert_close(low + pixels / 255 * (high - low), expected)


def test_a_variant_that_is_not_published_is_not_guessed_where_sizes_differ() -> None:
    with torch.device("meta"):
        model = torchvision.models.EfficientNet(
            [torchvision.models.efficientnet.MBConvConfig(1, 3, 1, 32, 16, 1, 1.0, 1.0)], dropout=0.0, last_channel=64
        )
    assert dfq_infer_input_spec(model) is None


def test_models_with_other_channels_are_not_claimed() -> None:
    model = build("resnet18")
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False, device="meta")
    assert dfq_infer_input_spec(model) is None


def test_other_models_are_not_claimed(tiny_network: nn.Module) -> None:
    assert dfq_infer_input_spec(tiny_network) is None
    with torch.device("meta"):
        detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert dfq_infer_input_spec(detector) is None


def test_it_is_found_through_the_public_hook() -> None:
    plugin = EntryPoint("builtin-torchvision", "dfq_plugins.network.torchvision_spec", "dfq_plugins")
    spec = build_registry(entry_points=[plugin], strict=True).infer_input_spec(build("resnet18"))
    assert spec is not None
    assert spec.shape == (3, 224, 224)
