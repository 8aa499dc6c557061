"""Small networks that return every structure that people's networks return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch user reads
from torch import Tensor, nn

from dfq_plugins.types import InputSpec

CLASSES = 6


class Pair(NamedTuple):
    """Two heads in a named tuple."""

    main: Tensor
    aux: Tensor


@dataclass
class Record:
    """Two heads in a dataclass that torch does not know."""

    scores: Tensor
    boxes: Tensor


class OutputNetwork(nn.Module):
    """Two convolutions with BatchNorm, and the heads that `kind` asks for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        )
        self.main, self.aux, self.one = nn.Linear(16, CLASSES), nn.Linear(16, 4), nn.Linear(16, 1)
        self.map, self.low = nn.Conv2d(16, CLASSES, 1), nn.Conv2d(16, CLASSES, 1)

    def forward(self, inputs: Tensor) -> Any:  # noqa: C901, PLR0911  one kind a line
        features = self.body(inputs)
        pooled = features.mean((2, 3))
        if self.kind == "single":
            return torch.sigmoid(self.one(pooled))
        if self.kind == "squeezed":
            return self.one(pooled).squeeze(1)
        if self.kind == "tokens":
            return self.map(features).flatten(2).permute(0, 2, 1)
        if self.kind == "segmentation":
            out = F.interpolate(self.map(features), scale_factor=2.0, mode="nearest")
            return {"out": out, "aux": self.low(features)}
        if self.kind == "alone":
            return {"out": self.map(features)}
        if self.kind == "pyramid":
            return [features, self.main(pooled)]
        if self.kind == "nested":
            return {"heads": (self.main(pooled), [self.aux(pooled), self.one(pooled)]), "map": self.map(features)}
        if self.kind == "named":
            return Pair(self.main(pooled), self.aux(pooled))
        if self.kind == "record":
            return Record(self.main(pooled), self.aux(pooled))
        if self.kind == "constants":
            return self.main(pooled), 0.5, None, "text", self.aux(pooled)
        if self.kind == "integers":
            logits = self.main(pooled)
            return logits, logits.argmax(1)
        if self.kind == "training-only" and self.training:
            return Pair(self.main(pooled), self.aux(pooled))
        return self.main(pooled)


NAMES = {
    "single": ["output"],
    "squeezed": ["output"],
    "tokens": ["output"],
    "segmentation": ["out", "aux"],
    "alone": ["out"],
    "pyramid": ["0", "1"],
    "nested": ["heads.0", "heads.1.0", "heads.1.1", "map"],
    "named": ["main", "aux"],
    "record": ["scores", "boxes"],
    "constants": ["0", "4"],
    "integers": ["0", "1"],
    "training-only": ["output"],
}
"""Names of the outputs in eval mode, by kind."""


def output_network(kind: str) -> nn.Module:
    """Return such a network with BatchNorm statistics as if trained, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = OutputNetwork(kind).train()
        with torch.no_grad():
            for _ in range(30):
                network(torch.randn(32, 3, 16, 16))
        return network.eval()


def output_spec(num_classes: int | None = 0) -> InputSpec:
    """Return the specification of their input."""
    return InputSpec((3, 16, 16), (0.0,) * 3, (1.0,) * 3, num_classes=num_classes)


def output_samples(count: int) -> Tensor:
    """Return inputs `(count, 3, 16, 16)`."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
