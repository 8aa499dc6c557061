"""Batches that come from two sources: what they hold, and how they resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfq_plugins.distillation.batches import Examples
from dfq_plugins.distillation.sources import MixedSource, joined

if TYPE_CHECKING:
    from collections.abc import Mapping


class Counting:
    """Counts its batches, each of which holds the count."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:  # noqa: ARG002  looks at none
        self.count += 1
        return Examples(torch.full((self.size, 3), float(self.count)), torch.full((self.size,), self.count))

    def capture(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.count = int(state["count"])


def test_each_makes_its_part_and_resumes_by_itself() -> None:
    first, second, student = Counting(2), Counting(3), nn.Identity()
    mixed = MixedSource(first, second)
    second.count = 10
    made = mixed.batch(0, student, 0.0)
    assert made.inputs[:, 0].tolist() == [1, 1, 11, 11, 11]
    assert made.labels is not None
    assert made.labels.tolist() == [1, 1, 11, 11, 11]
    kept = mixed.capture()
    mixed.batch(1, student, 0.5)
    mixed.restore(kept)
    assert (first.count, second.count) == (1, 11)


def test_labels_need_both_parts_and_answers_are_asked_anew() -> None:
    labeled = Examples(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.zeros(2, 4))
    assert joined(labeled, labeled).labels is not None
    assert joined(labeled, Examples(torch.ones(1, 3))).labels is None
    assert joined(labeled, labeled).answers is None
