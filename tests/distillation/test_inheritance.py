"""First weights from the teacher: which layers stand for which, what is copied, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dfq_plugins.distillation.inheritance import counterparts, inherit_weights, spread_over
from dfq_plugins.distillation.run import distill
from dfq_plugins.errors import UsageError
from dfq_plugins.pruning.ticket import Ticket
from dfq_plugins.types import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=4)
QUICK = {"steps": 2, "batch_size": 16, "num_evaluations": 1, "teacher_precision": "float32"}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + torch.relu(self.norm(self.conv(inputs)))


class Residual(nn.Module):
    def __init__(self, blocks: int, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2)
        self.stage = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.classifier = nn.Linear(width, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.stage(self.stem(inputs)).mean((2, 3)))
        return logits


def made(*arguments: Any, seed: int = 0) -> Residual:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Residual(*arguments)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
    return network.eval()


def test_blocks_of_a_stage_are_spread() -> None:
    teacher, student = made(5), made(3, seed=1)
    assert inherit_weights(teacher, student) == (
        "stem", *(f"stage.{place}.{layer}" for place in range(3) for layer in ("conv", "norm")), "classifier",
    )  # fmt: skip
    for place, other in enumerate((0, 2, 4)):
        ours, theirs = student.stage[place].state_dict(), teacher.stage[other].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_same_architecture_becomes_the_same_network() -> None:
    teacher, student = made(3), made(3, seed=1)
    inherit_weights(teacher, student)
    assert torch.equal(student(torch.ones(1, 3, 8, 8)), teacher(torch.ones(1, 3, 8, 8)))


def test_layers_of_other_shapes_keep_their_weights() -> None:
    teacher, student = made(3, 6, 4), made(3, 6, 5, seed=1)
    own = student.classifier.weight.clone()
    assert "classifier" not in inherit_weights(teacher, student)
    assert torch.equal(student.classifier.weight, own)


@pytest.mark.parametrize(
    ("few", "many", "places"), [(1, 4, [0]), (2, 9, [0, 8]), (4, 4, [0, 1, 2, 3]), (3, 2, [0, 0, 1])]
)
def test_ends_stand_for_ends(few: int, many: int, places: list[int]) -> None:
    assert [spread_over(place, few, many) for place in range(few)] == places


def test_a_row_of_different_layers_goes_by_names() -> None:
    teacher = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    student = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    pairs = {name: theirs for name, _, theirs in counterparts(student, teacher) if name}
    assert {name: teacher[int(name)] is theirs for name, theirs in pairs.items()} == {"0": True, "1": True, "2": True}
    assert inherit_weights(teacher, student) == ("0",)


class TestDistilling:
    def test_the_student_begins_with_the_teachers_weights(self) -> None:
        teacher, student = made(3), made(3, seed=1)
        first = student.stem.weight.clone()
        run = distill(teacher, student, torch.randn(40, 3, 8, 8), spec=SPEC, inherit=True, training=QUICK)
        assert run.agreement_before == 1.0
        assert len(run.inherited) == 8
        assert torch.equal(student.stem.weight, first)

    def test_nothing_to_inherit(self) -> None:
        student = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        with pytest.raises(
            UsageError, match=r"there are none: the teacher has 'stem' \(6, 3, 3, 3\), .* '1' \(4, 192\)"
        ):
            distill(made(3), student, torch.randn(40, 3, 8, 8), spec=SPEC, inherit=True, training=QUICK)

    def test_not_beside_a_ticket(self) -> None:
        network = made(2)
        ticket = Ticket.find(network, network, 0.5)
        with pytest.raises(UsageError, match="Give ticket or inherit"):
            distill(made(3), network, torch.randn(40, 3, 8, 8), spec=SPEC, inherit=True, ticket=ticket, training=QUICK)
