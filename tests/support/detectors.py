"""A small detector with steps around its layers that cannot be traced: values decide them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from tiny_networks import settle_batch_norm

SIZE = 32


def block(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Backbone(nn.Module):
    """Two levels of features, by name."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(3, 8, 2), block(8, 8, 2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.first(images)
        return OrderedDict([("fine", fine), ("coarse", self.second(fine))])


class Head(nn.Module):
    """Scores and boxes of each level, with layers shared between the levels."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.box = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, features: list[Tensor]) -> dict[str, list[Tensor]]:
        return {"scores": [self.score(level) for level in features], "boxes": [self.box(level) for level in features]}


class Detector(nn.Module):
    """Takes a list of images, and returns a dictionary of boxes and scores for each, at most eight."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), Head()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        batch = torch.stack([(image - 0.5) / 0.25 for image in images])
        outputs = self.head(list(self.backbone(batch).values()))
        return [self.detections(outputs, index) for index in range(len(images))]

    def detections(self, outputs: dict[str, list[Tensor]], index: int) -> dict[str, Tensor]:
        scores = torch.cat([level[index].amax(0).flatten() for level in outputs["scores"]])
        boxes = torch.cat([_boxes(level[index]) for level in outputs["boxes"]])
        kept = nms(boxes, scores, 0.3)
        threshold = scores.median()
        while (scores[kept] > threshold).sum() > 8:  # values decide how often
            threshold = threshold + 0.05
        kept = kept[scores[kept] > threshold]
        return {"boxes": boxes[kept], "scores": scores[kept]}


def _boxes(level: Tensor) -> Tensor:
    """Return boxes `(positions, 4)` around the positions of a map `(4, height, width)`."""
    height, width = level.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    step = SIZE / height
    center = torch.stack([columns, rows]).flatten(1).T * step + step / 2
    extent = (level.flatten(1).T[:, :2].sigmoid() + 0.5) * step
    return torch.cat([center - extent, center + extent], dim=1)


def images(count: int, size: int = SIZE, seed: int = 0) -> list[Tensor]:
    """Return smooth random images."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=rng)
    return list(nn.functional.interpolate(coarse, (size, size), mode="bilinear"))


def detector(kind: Any = Detector) -> nn.Module:
    """Return a detector whose BatchNorm statistics fit the images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind()
        settle_batch_norm(network.backbone.first, (torch.stack(images(32)) - 0.5) / 0.25)
        return network.eval()
