"""Detectors and other networks that cannot be traced as a whole, quantized part by part."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import dfq_plugins as dfq
from detectors import SIZE, Backbone, Detector, Head, detector, images
from dfq_plugins.errors import DataError, DfqError, ModelError, UsageError
from dfq_plugins.inputs import run_network

if TYPE_CHECKING:
    from pathlib import Path

FRAMEWORKS = ("torch-ao", "pytorch-quantization", "brevitas")


def matched(expected: dict[str, Tensor], found: dict[str, Tensor]) -> int:
    """Return how many of the expected boxes lie within half a pixel of one that was found."""
    distances = (expected["boxes"][:, None] - found["boxes"][None]).abs().amax(2)
    return int((distances.amin(1) < 0.5).sum())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_detector_s_backbone_and_head_are_quantized(framework: str, tmp_path: Path) -> None:
    network = detector()
    before = copy.deepcopy(network.state_dict())
    run = dfq.quantize_parts(network, [images(8)], calibrator=framework, output=tmp_path)
    assert [part.name for part in run.parts] == ["backbone", "head"]
    assert all(part.decibels > 20 for part in run.parts)
    assert "backbone.first.0" in run.coverage.layers
    assert "head.score" in run.coverage.layers
    assert not run.rejected
    assert {artifact.path.parent.name for artifact in run.artifacts} == {"backbone", "head"}
    inputs = images(4, seed=1)
    expected, found = network(inputs), run.model(inputs)
    boxes = sum(len(each["boxes"]) for each in expected)
    assert sum(matched(*pair) for pair in zip(expected, found, strict=True)) >= 0.75 * boxes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert type(network.backbone) is Backbone
    assert run.model.backbone.out_channels == 8


def test_exported_parts_compute_what_the_quantized_network_does(tmp_path: Path) -> None:
    run = dfq.quantize_parts(detector(), [images(8)], calibrator="torch-ao", output=tmp_path)
    batch = torch.stack(images(3))
    loaded = dfq.load_quantized(tmp_path / "backbone" / "model.torchscript.pt")
    found, expected = run_network(loaded, batch), run.model.backbone(batch)
    assert list(expected) == ["fine", "coarse"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["lists", "pairs", "images", "images with targets", "one tensor", "batches"])
def test_data_comes_in_any_form(kind: str) -> None:
    samples = images(6)
    batch = torch.stack(samples)
    forms: dict[str, Any] = {
        "lists": [samples[:4], samples[4:]],
        "pairs": iter([(samples[:4], [{}] * 4), (tuple(samples[4:]), ({}, {}))]),
        "images": samples,
        "images with targets": [(image, {"boxes": torch.zeros(0, 4)}) for image in samples],
        "one tensor": batch,
        "batches": [batch[:4], batch[4:]],
    }
    call: Any = "list" if kind.startswith("images") else None
    run = dfq.quantize_parts(detector(), forms[kind], ["head"], call=call, calibrator="torch-ao")
    reference = dfq.quantize_parts(detector(), [samples], ["head"], calibrator="torch-ao")
    found, expected = (each.model(images(1))[0]["scores"] for each in (run, reference))
    assert torch.allclose(found, expected, atol=0.02)  # observers depend on the batches


class OneLevelAtATime(Detector):
    """Calls its head on each level, with different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.head: nn.Module = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        levels = [self.head(level) for level in self.backbone(torch.stack(images)).values()]
        outputs = {"scores": [level[:, :2] for level in levels], "boxes": [level[:, 2:] for level in levels]}
        return [self.detections(outputs, index) for index in range(len(images))]


def test_a_part_that_is_called_with_several_shapes_is_quantized_for_each(tmp_path: Path) -> None:
    network = detector(OneLevelAtATime)
    run = dfq.quantize_parts(network, [images(8), images(4, seed=2)], calibrator="torch-ao", output=tmp_path)
    assert [(part.name, part.shapes) for part in run.parts] == [
        ("backbone", ((3, SIZE, SIZE),)),
        ("head", ((8, 16, 16),)),
        ("head", ((8, 8, 8),)),
    ]
    assert (tmp_path / "head" / "1" / "model.torchscript.pt").exists()
    assert len(run.model(images(2))) == 2


def test_other_shapes_are_refused_by_name() -> None:
    run = dfq.quantize_parts(detector(), [images(4)], calibrator="torch-ao")
    with pytest.raises(
        ModelError, match=r"'backbone' is quantized for inputs of shape \(3, 32, 32\).*got \(3, 48, 48\)"
    ):
        run.model(images(2, size=48))
    with pytest.raises(
        ModelError, match=r"call 1 of 'backbone' is given \(3, 32, 32\) for one batch and \(3, 48, 48\)"
    ):
        dfq.quantize_parts(detector(), [images(4), images(4, size=48)], calibrator="torch-ao")


class TwoStages(Detector):
    """Runs a second stage on the boxes that the first one found, perhaps none."""

    def __init__(self) -> None:
        super().__init__()
        self.refine = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, images: list[Tensor], threshold: float = 0.0) -> list[dict[str, Tensor]]:
        found = super().forward(images)
        for each in found:
            kept = each["scores"] > threshold
            each["boxes"] = self.refine(each["boxes"][kept] / SIZE)
        return found


def test_a_second_stage_takes_any_number_of_boxes() -> None:
    network = detector(TwoStages)
    run = dfq.quantize_parts(network, [images(8)], ["backbone", "refine"], calibrator="torch-ao")
    assert run.parts[1].decibels > 20
    assert run.model(images(1), threshold=1e6)[0]["boxes"].shape == (0, 4)


class Conditional(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values if values.sum() > 0 else -values


class Unusual(Detector):
    """Has parts that cannot be quantized, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.conditional = nn.Sequential(nn.Conv2d(8, 8, 3), Conditional())
        self.objects, self.counted, self.unused = nn.Linear(1, 1), nn.Embedding(4, 4), nn.Linear(4, 4)
        self.objects.forward = lambda _: None  # type: ignore[method-assign]
        self.empty = nn.Linear(4, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.conditional(self.backbone(torch.stack(images))["coarse"])
        self.objects(object())
        self.counted(torch.zeros(1, dtype=torch.long))
        self.empty(torch.zeros(0, 4))
        return super().forward(images)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (["conditional"], ModelError, r"The part 'conditional' cannot be quantized: .*values if values\.sum\(\) > 0"),
        (["objects"], ModelError, "'objects' cannot be quantized on its own.* object of type object. Name a module"),
        (["counted"], ModelError, r"'counted' cannot be quantized on its own: it takes torch\.int64"),
        (["unused"], ModelError, "The part 'unused' is not called in evaluation mode"),
        (["empty"], ModelError, "The part 'empty' gets no samples on this data"),
        (["backbon"], UsageError, r"submodule of Unusual, got 'backbon'\. Did you mean 'backbone'\?"),
        (["backbone", "backbone.first"], UsageError, "'backbone.first' lies in 'backbone'"),
        (["head", "head"], UsageError, "Each part can be named once"),
    ],
)
def test_parts_that_cannot_be_quantized_are_refused(parts: list[str], error: type[DfqError], message: str) -> None:
    with pytest.raises(error, match=message):
        dfq.quantize_parts(detector(Unusual), [images(2)], parts, calibrator="torch-ao")


def test_unknown_parts_are_to_be_named() -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.score = Backbone(), Head()

    with pytest.raises(UsageError, match=r"parts of Renamed are not known.*parts=\('trunk', 'score'\)"):
        dfq.quantize_parts(Renamed(), [images(2)], calibrator="torch-ao")


def test_integer_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"Images must be floating-point, got torch\.uint8"):
        dfq.quantize_parts(detector(), [[image.byte() for image in images(2)]], calibrator="torch-ao")


def test_a_detector_as_a_whole_is_refused_with_the_way_round() -> None:
    with pytest.raises(UsageError, match=r"Detector takes a list of images.*dfq_plugins\.quantize_parts"):
        dfq.quantize(detector(), torch.stack(images(4)), calibrator="torch-ao")
    with pytest.raises(UsageError, match=r"a list of images, use dfq_plugins\.quantize_parts"):
        dfq.quantize(detector(), [(images(4), [{}] * 4)], calibrator="torch-ao")


def test_parts_of_a_network_that_takes_several_inputs() -> None:
    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.mix = nn.Conv2d(3, 4, 3), nn.Bilinear(4, 2, 3)
            self.last = nn.Linear(3, 2)

        def forward(self, image: Tensor, meta: Tensor) -> Tensor:
            pooled = self.features(image).mean((2, 3))
            return self.last(self.mix(pooled, meta)) * (2 if pooled.sum() > 0 else 1)

    data = {"image": torch.rand(8, 3, 8, 8), "meta": torch.rand(8, 2)}
    run = dfq.quantize_parts(Selecting(), data, ["features", "last"], calibrator="torch-ao")
    assert all(part.decibels > 20 for part in run.parts)
    assert run.model(**data).shape == (8, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The part that .* does not follow:dfq_plugins.errors.DfqWarning")  # random weights
@pytest.mark.parametrize("framework", ["torch-ao", "pytorch-quantization"])
def test_ssdlite_from_torchvision(framework: str) -> None:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    network.transform.fixed_size = (96, 96)
    for layer in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        layer.momentum = None  # the average of all passes
        layer.reset_running_stats()
        layer.train()
    with torch.no_grad():
        network(images(4, size=96))
    network.eval()
    run = dfq.quantize_parts(network, [images(2, size=96)], calibrator=framework)
    assert [part.name for part in run.parts] == ["backbone", "head"]
    assert len(run.model(images(1, size=120))) == 1
