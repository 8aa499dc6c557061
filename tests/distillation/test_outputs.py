"""The loss over any outputs: classes, pixels, values, their weights, and the user's own task loss."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch user reads
from torch import Tensor, nn

import dfq_plugins as dfq
from dfq_plugins.distillation import DistillationLoss, TrainingOptions
from dfq_plugins.distillation.batches import Examples
from dfq_plugins.distillation.evaluation import HeldOut
from dfq_plugins.distillation.task_loss import TaskBatch, targets_of
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.types import InputSpec
from output_networks import CLASSES, output_network, output_samples, output_spec

if TYPE_CHECKING:
    from collections.abc import Callable

INPUTS = output_samples(12)
EXACT = {"teacher_precision": "float32", "padding": 0}


def moved(network: nn.Module, amount: float = 0.05) -> nn.Module:
    """Return a copy whose weights are a little off."""
    student, rng = copy.deepcopy(network), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=rng))
    return student


def scaled(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().mean() / theirs.var(correction=0)


def test_pixels_of_a_class_map_are_compared_by_their_probabilities() -> None:
    teacher = output_network("segmentation")
    student = moved(teacher)
    ours, theirs = student(INPUTS), teacher(INPUTS)

    def divergence(name: str) -> Tensor:
        log_ours, log_theirs = (maps[name].div(4).log_softmax(1) for maps in (ours, theirs))
        return 16 * (log_theirs.exp() * (log_theirs - log_ours)).sum(1).mean()

    loss = DistillationLoss(teacher, EXACT, num_classes=CLASSES)
    expected = (divergence("out") + divergence("aux")) / 2
    assert loss(ours, INPUTS).item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(loss.latest) == {"kl"}
    judged = HeldOut(Examples(INPUTS), loss, 5).judge(student)
    assert judged.loss == pytest.approx(expected.item(), rel=1e-4)
    same = (ours["out"].argmax(1) == theirs["out"].argmax(1)).float().mean()
    assert judged.agreement == pytest.approx(same.item())


@pytest.mark.parametrize("kind", ["single", "squeezed", "tokens", "named", "nested"])
def test_values_are_compared_as_a_share_of_their_variance(kind: str) -> None:
    from dfq_plugins.network.outputs import named_outputs

    teacher = output_network(kind)
    student = moved(teacher)
    ours, theirs = named_outputs(student(INPUTS)), named_outputs(teacher(INPUTS))
    expected = torch.stack([scaled(ours[name], theirs[name]) for name in theirs]).mean()
    loss = DistillationLoss(teacher, EXACT)
    assert loss(student(INPUTS), INPUTS).item() == pytest.approx(expected.item(), rel=1e-4)
    assert HeldOut(Examples(INPUTS), loss, 5).judge(student).loss == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0  # one logit, too: KL over one class is always 0


def test_classes_and_values_are_mixed_and_weighed_by_name() -> None:
    teacher = output_network("named")
    student = moved(teacher)
    ours, theirs = student(INPUTS), teacher(INPUTS)
    kl = 16 * F.kl_div((ours[0] / 4).log_softmax(1), (theirs[0] / 4).softmax(1), reduction="batchmean")
    distance = scaled(ours[1], theirs[1])
    for weights, expected in (((), (kl + distance) / 2), (("aux=3",), (kl + 3 * distance) / 4), (("aux=0",), kl)):
        loss = DistillationLoss(teacher, {**EXACT, "output_weights": weights}, num_classes=CLASSES)
        assert loss(ours, INPUTS).item() == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(UsageError, match=r"names 'auxx', but the outputs are main, aux\. Did you mean 'aux'\?"):
        DistillationLoss(teacher, {"output_weights": ("auxx=1",)})(ours, INPUTS)
    with pytest.raises(UsageError, match="All output_weights are 0"):
        DistillationLoss(teacher, {"output_weights": ("aux=0", "main=0")})(ours, INPUTS)
    with pytest.raises(UsageError, match=r"An output weight is name=weight, e\.g\. aux=0\.4, got 'aux'"):
        DistillationLoss(teacher, {"output_weights": ("aux",)})(ours, INPUTS)


def test_a_teacher_without_finite_outputs_teaches_nothing() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.Threshold(100.0, float("nan")))
    with pytest.raises(ModelError, match="'output' holds NaN or infinity for 12 of 12 samples"):
        HeldOut(Examples(INPUTS), DistillationLoss(teacher), 5)


class TestTaskLoss:
    def test_it_sees_the_outputs_the_targets_and_the_teacher(self) -> None:
        teacher, seen = output_network("segmentation"), []

        def task(outputs: Any, batch: TaskBatch) -> Tensor:
            seen.append((set(outputs), batch.targets, set(batch.outputs), len(batch.inputs)))
            return outputs["out"].square().mean()

        loss = DistillationLoss(teacher, {**EXACT, "task_loss": task, "task_weight": 3.0}, num_classes=CLASSES)
        outputs = moved(teacher)(INPUTS)
        total = loss(outputs, INPUTS, targets={"mask": 1})
        assert seen == [({"out", "aux"}, {"mask": 1}, {"out", "aux"}, 12)]
        assert total.item() == pytest.approx((loss.latest["kl"] + 3 * outputs["out"].square().mean()).item(), rel=1e-5)

    def test_it_may_be_all_that_is_trained(self) -> None:
        teacher = output_network("squeezed")
        targets = teacher(INPUTS).detach() + 1
        pairs = [(INPUTS[:6], {"more": targets[:6]}), (INPUTS[6:], {"more": targets[6:]})]

        def task(outputs: Tensor, batch: TaskBatch) -> Tensor:
            return F.mse_loss(outputs, batch.targets["more"])

        run = dfq.finetune(
            teacher,
            iter(pairs),
            calibrator="pytorch-quantization",
            spec=output_spec(),
            training={
                "steps": 30,
                "batch_size": 6,
                "num_evaluations": 3,
                "learning_rate": 0.02,
                "distance_weight": 0,
                "kl_weight": 0,
                "task_loss": task,
                "validation_fraction": 0.4,
            },
        )
        assert run.history[-1].held_out_loss < 0.9 * run.history[0].held_out_loss
        assert run.training.as_record()["task_loss"].endswith("test_it_may_be_all_that_is_trained.<locals>.task")

    def test_it_may_be_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("my_losses")
        module.zero = lambda _outputs, batch: batch.inputs.sum() * 0  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "my_losses", module)
        teacher = output_network("squeezed")
        loss = DistillationLoss(teacher, {"task_loss": "my_losses:zero"})
        loss(teacher(INPUTS), INPUTS)
        assert loss.latest["task"] == 0
        for wrong in ("my_losses:none", "nowhere:zero", "zero"):
            with pytest.raises(UsageError, match=f"must be a function or its module:function, got '{wrong}'"):
                DistillationLoss(teacher, {"task_loss": wrong})

    def test_it_returns_one_number(self) -> None:
        teacher = output_network("squeezed")
        wrong: list[tuple[Callable[..., Any], str]] = [
            (lambda outputs, _: outputs, r"\(12,\)"),
            (lambda *_: 0.5, "float"),
        ]
        for task, got in wrong:
            with pytest.raises(UsageError, match=f"must return one number as a tensor, got {got}. Reduce it"):
                DistillationLoss(teacher, {"task_loss": task})(teacher(INPUTS), INPUTS)

    def test_targets_stay_with_their_inputs(self) -> None:
        pairs = [
            (INPUTS[:5], (torch.arange(5), {"b": INPUTS[:5, 0]})),
            (INPUTS[5:], (torch.arange(5, 12), {"b": INPUTS[5:, 0]})),
        ]
        numbers, boxes = targets_of(pairs, InputSpec((4,)))
        assert torch.equal(numbers, torch.arange(12))
        examples = Examples(INPUTS, targets=(numbers, boxes)).take(torch.tensor([7, 2]))
        assert torch.equal(examples.targets[1]["b"], examples.inputs[:, 0])
        assert targets_of([INPUTS], InputSpec((4,))) is None
        for wrong in ([(INPUTS, torch.zeros(3))], [(INPUTS, torch.zeros(12)), INPUTS], [(INPUTS, [{"boxes": 1}])]):
            with pytest.raises(DataError, match="needs targets with one entry per input in every batch"):
                targets_of(wrong, InputSpec((4,)))

    def test_inputs_with_targets_are_not_augmented(self) -> None:
        with pytest.raises(UsageError, match="belong to the inputs as they are, but the settings change the inputs"):
            dfq.finetune(
                output_network("squeezed"), [(INPUTS, torch.zeros(12))], calibrator="pytorch-quantization",
                spec=output_spec(), training={"task_loss": lambda *_: torch.zeros(()), "flip": True, "steps": 1},
            )  # fmt: skip


def test_settings_are_plain_records() -> None:
    assert TrainingOptions().as_record()["task_loss"] is None
    assert TrainingOptions(task_loss="a:b").as_record()["task_loss"] == "a:b"
