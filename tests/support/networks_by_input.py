"""One small network for each kind of input, with its specification; BatchNorm has seen a few random batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.types import InputSpec, NetworkSpec, as_specification

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.types import GivenSpec, Inputs, Specification

WIDTH = 8
CLASSES = 5


def features(channels: int) -> nn.Sequential:
    """Return two convolutions with BatchNorm for images."""
    return nn.Sequential(
        *(nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()),
        *(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()),
    )


class ImageAndMetadata(nn.Module):
    """Adds a linear layer of metadata, which no BatchNorm sees, to the logits of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier, self.embed = features(3), nn.Linear(WIDTH, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(image).mean((2, 3))) + self.embed(meta)
        return logits


class TwoImages(nn.Module):
    """Concatenates the features of two images of different kinds; a flag and a mask keep their defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.classifier = features(3), features(1), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, left: Tensor, right: Tensor, mask: Tensor | None = None, return_features: bool = False) -> Tensor:
        joined = torch.cat([self.left(left), self.right(right)], 1)
        if mask is not None:
            joined = joined * mask
        if return_features:
            return joined
        logits: Tensor = self.classifier(joined.mean((2, 3)))
        return logits


class OneDictionary(nn.Module):
    """Takes all its inputs in one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ImageAndMetadata()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.network(batch["image"], batch["meta"])
        return logits


class AnyPositional(nn.Module):
    """Takes any number of positional arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ImageAndMetadata()

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(*inputs)
        return logits


class KeywordOnly(nn.Module):
    """Takes its input by keyword only."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = features(3), nn.Linear(WIDTH, CLASSES)

    def forward(self, *, pixels: Tensor, scale: float = 1.0) -> Tensor:
        logits: Tensor = self.classifier(self.features(pixels).mean((2, 3))) * scale
        return logits


class OptionalArguments(nn.Module):
    """Has arguments of every kind that a call without them leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = features(3), nn.Linear(WIDTH, CLASSES)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *others: Tensor, return_features: bool = False, **more: Tensor
    ) -> Tensor:
        found: Tensor = self.features(x)
        if mask is not None or others or more:
            found = found * mask
        if return_features:
            return found
        logits: Tensor = self.classifier(found.mean((2, 3)))
        return logits


class Sequences(nn.Module):
    """Convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv1d(4, WIDTH, 5, padding=2), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(WIDTH, WIDTH, 3), nn.BatchNorm1d(WIDTH), nn.ReLU()),
        )
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean(2))
        return logits


class PointCloud(nn.Module):
    """The same layers for each point, and the largest feature of all points; points come last, or first."""

    def __init__(self, *, points_first: bool = False) -> None:
        super().__init__()
        self.points_first = points_first
        self.features = nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        channels_first = points.transpose(1, 2) if self.points_first else points
        logits: Tensor = self.classifier(torch.max(self.features(channels_first), 2)[0])
        return logits


def volumes() -> nn.Module:
    """Return convolutions over three axes."""
    return nn.Sequential(
        *(nn.Conv3d(1, WIDTH, 3, padding=1), nn.BatchNorm3d(WIDTH), nn.ReLU(), nn.MaxPool3d(2)),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)),
    )


def tables() -> nn.Module:
    """Return linear layers with BatchNorm."""
    return nn.Sequential(nn.Linear(7, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def rectangles() -> nn.Module:
    """Return a network for spectrograms, which are not square."""
    return nn.Sequential(features(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES))


IMAGE, META = InputSpec((3, 12, 12), value_range=(0, 1)), InputSpec((4,), value_range=(-2, 2))
GRAY = InputSpec((1, 12, 12), (0.5,), (0.25,), (0, 1))
BOTH = {"image": IMAGE, "meta": META}

KINDS: dict[str, tuple[Callable[[], nn.Module], GivenSpec]] = {
    "image and metadata": (ImageAndMetadata, BOTH),
    "two images": (TwoImages, {"left": IMAGE, "right": GRAY}),
    "one dictionary": (OneDictionary, NetworkSpec(BOTH, call="dictionary")),
    "any positional": (AnyPositional, NetworkSpec(BOTH, call="positional")),
    "keyword only": (KeywordOnly, {"pixels": IMAGE}),
    "optional arguments": (OptionalArguments, IMAGE),
    "sequence": (Sequences, InputSpec((4, 24))),
    "point cloud": (PointCloud, InputSpec((3, 20), value_range=(-1, 1))),
    "points first": (lambda: PointCloud(points_first=True), InputSpec((20, 3), value_range=(-1, 1))),
    "volume": (volumes, InputSpec((1, 6, 6, 6), value_range=(0, 1))),
    "table": (tables, InputSpec((7,))),
    "rectangle": (rectangles, InputSpec((1, 20, 12), (0.5,), (0.25,), (0, 1))),
}


@dataclass(frozen=True)
class Example:
    """A network in eval mode with the specification of its inputs."""

    network: nn.Module
    spec: Specification

    def random(self, samples: int, seed: int = 0) -> Inputs:
        """Return random inputs in their ranges."""
        rng = torch.Generator().manual_seed(seed)

        def drawn(one: InputSpec) -> Tensor:
            if one.input_range is None:
                return torch.randn(samples, *one.shape, generator=rng)
            low, high = one.input_range
            return low + (high - low) * torch.rand(samples, *one.shape, generator=rng)

        return self.spec.map(drawn)

    def outputs(self, network: Any, inputs: Inputs) -> Tensor:
        """Return the outputs of a network that takes these inputs as this one does."""
        with torch.no_grad():
            found = self.spec.run(network, inputs)
        plain: Tensor = getattr(found, "value", found)  # Brevitas's record
        return plain


def example(kind: str) -> Example:
    """Return the network of a kind."""
    make, given = KINDS[kind]
    spec = as_specification(given)
    assert spec is not None
    spec = replace(spec, num_classes=CLASSES)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        found = Example(make().train(), spec)
        for batch in range(10):
            spec.run(found.network, found.random(16, batch))
    return Example(found.network.eval(), spec)
