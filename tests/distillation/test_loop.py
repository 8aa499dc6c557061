"""The teacher/student loop on a tiny network: it learns, it resumes exactly, it refuses what cannot work."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.distillation import DistillationLoss, TrainingOptions, TrainingPoint, train_student
from dfq_plugins.distillation.batches import Examples, TrainingBatches, mix_up, presented, rng_for, split_held_out
from dfq_plugins.distillation.evaluation import HeldOut
from dfq_plugins.distillation.history import best_point
from dfq_plugins.distillation.loop import CheckpointDir, Student
from dfq_plugins.distillation.run import distill
from dfq_plugins.distillation.sources import DatasetSource
from dfq_plugins.distillation.state import CHECKPOINT_FILE, capture, read_checkpoint, restore
from dfq_plugins.distillation.terms import kl_divergence
from dfq_plugins.errors import DataError, DivergedError, ModelError, UsageError
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import ProgressEvent

OPTIONS = TrainingOptions(
    steps=24, batch_size=16, num_evaluations=4, learning_rate=0.03, teacher_precision="float32", validation_fraction=0.2
)
EVERYTHING = replace(
    OPTIONS, mixup=0.4, jitter=1, flip=True, crop=0.8, label_weight=0.1, feature_weight=0.1, attention_weight=0.1,
    symmetrized_kl_weight=0.1, logit_weight=0.1, feature_layers=("conv", "block-ends"), batch_norm="reestimated",
)  # fmt: skip


@pytest.fixture
def examples(tiny_network: nn.Module) -> Examples:
    inputs = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)
    with torch.no_grad():
        return Examples(inputs, tiny_network(inputs).argmax(1))


def coarse(teacher: nn.Module) -> nn.Module:
    """Return a copy of the network with crudely rounded weights, which training can mend."""
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_((parameter * 4).round() / 4)
    return student.requires_grad_(True)


def train(
    teacher: nn.Module,
    student: nn.Module,
    examples: Examples,
    options: TrainingOptions = OPTIONS,
    place: CheckpointDir | None = None,
    num_classes: int | None = 4,
    **about: Any,
) -> tuple[TrainingPoint, ...]:
    trained_on, held_out = split_held_out(examples, options.validation_fraction, options.seed)
    loss = DistillationLoss(teacher, options, num_classes=num_classes, student=student, sample=held_out.inputs[:2])
    try:
        source = DatasetSource(trained_on, options, num_classes=4)
        return train_student(Student(student, **about), loss, source, held_out, options, place)
    finally:
        loss.close()


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = capture(first), capture(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def curves(history: tuple[TrainingPoint, ...]) -> list[TrainingPoint]:
    return [replace(point, seconds=0.0) for point in history]


class TestLearning:
    def test_the_student_comes_closer_to_the_teacher(self, tiny_network: nn.Module, examples: Examples) -> None:
        student = coarse(tiny_network)
        history = train(tiny_network, student, examples)
        assert [point.step for point in history] == [0, 6, 12, 18, 24]
        assert history[0].loss is None
        assert history[-1].held_out_loss < 0.5 * history[0].held_out_loss
        assert history[-1].learning_rate == pytest.approx(0.0)
        assert not student.training

    def test_with_every_term_and_augmentation(self, tiny_network: nn.Module, examples: Examples) -> None:
        history = train(tiny_network, coarse(tiny_network), examples, EVERYTHING)
        assert best_point(history).held_out_loss < history[0].held_out_loss

    def test_the_best_state_comes_back(self, tiny_network: nn.Module, examples: Examples) -> None:
        student = copy.deepcopy(tiny_network)  # perfect from the start: every step leads away
        wild = replace(OPTIONS, label_weight=5.0, kl_weight=0.0, learning_rate=0.5)
        history = train(tiny_network, student, examples, wild)
        assert best_point(history).step == 0
        assert same(student, tiny_network)

    def test_teacher_caller_and_hooks_stay_as_they_were(self, tiny_network: nn.Module, examples: Examples) -> None:
        tiny_network.train()
        before = capture(tiny_network)
        student = coarse(tiny_network)
        train(tiny_network, student, examples, EVERYTHING)
        assert tiny_network.training
        assert all(torch.equal(value, before[name]) for name, value in capture(tiny_network).items())
        for model in (tiny_network, student):
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(parameter.grad is None for parameter in student.parameters())

    def test_batch_norm_is_frozen_or_estimated_anew(self, tiny_network: nn.Module, examples: Examples) -> None:
        shifted = Examples(examples.inputs + 0.5)
        frozen, anew = coarse(tiny_network), coarse(tiny_network)
        train(tiny_network, frozen, shifted, replace(OPTIONS, learning_rate=0.0))
        assert torch.equal(frozen.norm1.running_mean, tiny_network.norm1.running_mean)
        train(tiny_network, anew, shifted, replace(OPTIONS, learning_rate=1e-6, batch_norm="reestimated"))
        trained = [not torch.equal(anew.norm1.running_mean, tiny_network.norm1.running_mean)]
        assert any(trained)

    def test_scales_have_a_learning_rate_of_their_own(self, tiny_network: nn.Module, examples: Examples) -> None:
        student = coarse(tiny_network)
        weight, bias = student.linear.weight.clone(), student.linear.bias.clone()
        options = replace(OPTIONS, scale_learning_rate=0.0)
        train(tiny_network, student, examples, options, scales=(student.linear.bias,))
        assert torch.equal(student.linear.bias, bias)
        assert not torch.equal(student.linear.weight, weight)

    def test_ranges_are_frozen_at_their_time(self, tiny_network: nn.Module, examples: Examples) -> None:
        seen: list[int] = []
        steps: list[int] = []
        place = CheckpointDir(report=lambda event: steps.append(event.completed))
        train(
            tiny_network, coarse(tiny_network), examples, replace(OPTIONS, freeze_ranges=0.25), place,
            freeze_ranges=lambda: seen.append(len(steps)),
        )  # fmt: skip
        assert seen == [6]

    def test_a_time_budget_ends_the_run_with_the_schedule(self, tiny_network: nn.Module, examples: Examples) -> None:
        options = replace(OPTIONS, steps=100_000, max_seconds=0.5)
        history = train(tiny_network, coarse(tiny_network), examples, options)
        assert 0 < history[-1].step < 10_000
        assert history[-1].learning_rate == pytest.approx(0.0)

    def test_a_time_budget_that_runs_out_between_two_steps_ends_the_run(
        self, tiny_network: nn.Module, examples: Examples, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dfq_plugins.distillation import loop

        seen: list[float] = []

        class Late:
            """Stands still during each step, and passes the end before the next one begins."""

            seconds = 0.0

            def progress(self, step: float, _seconds: float) -> float:
                seen.append(step)
                return 1.0 if step > 1 or seen.count(1) > 1 else 0.9

        monkeypatch.setattr(loop, "Clock", lambda *_: Late())
        options = replace(OPTIONS, steps=100_000, max_seconds=0.5)
        history = train(tiny_network, coarse(tiny_network), examples, options)
        assert history[-1].step == 2

    def test_progress_is_reported_step_by_step(self, tiny_network: nn.Module, examples: Examples) -> None:
        events: list[ProgressEvent] = []
        train(tiny_network, coarse(tiny_network), examples, place=CheckpointDir(report=events.append))
        assert [event.completed for event in events] == list(range(1, 25))
        assert {event.total for event in events} == {24}
        assert set(events[-1].metrics) == {"loss", "held_out"}

    def test_other_outputs_than_logits(self, examples: Examples) -> None:
        teacher = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
        history = train(teacher, coarse(teacher), examples, num_classes=None)
        assert history[-1].held_out_loss < history[0].held_out_loss
        assert history[-1].agreement is None
        with pytest.raises(
            UsageError, match=r"label term needs class logits \(batch, classes\), and no output is known"
        ):
            train(teacher, coarse(teacher), examples, replace(OPTIONS, label_weight=1.0), num_classes=None)


class TestCompilation:
    def test_the_compiled_student_takes_both_passes(
        self, tiny_network: nn.Module, examples: Examples, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []

        def compiler(model: nn.Module, *, dynamic: bool) -> Any:
            assert not dynamic
            return lambda inputs: calls.append(len(inputs)) or model(inputs)

        monkeypatch.setattr(torch, "compile", compiler)
        plain, compiled = coarse(tiny_network), coarse(tiny_network)
        train(tiny_network, plain, examples)
        train(tiny_network, compiled, examples, replace(OPTIONS, compile=True))
        assert calls == [16] * 24
        assert same(plain, compiled)

    def test_where_it_fails_the_plain_steps_go_on(
        self,
        tiny_network: nn.Module,
        examples: Examples,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        class NoKernel(torch.autograd.Function):
            @staticmethod
            def forward(_context: Any, value: Tensor) -> Tensor:
                return value.clone()

            @staticmethod
            def backward(_context: Any, _gradient: Tensor) -> Tensor:
                raise RuntimeError("no kernel")

        monkeypatch.setattr(torch, "compile", lambda model, **_: lambda inputs: NoKernel.apply(model(inputs)))
        plain, fallen = coarse(tiny_network), coarse(tiny_network)
        train(tiny_network, plain, examples)
        train(tiny_network, fallen, examples, replace(OPTIONS, compile=True))
        assert [record.message for record in caplog.records] == [
            "Compilation failed (RuntimeError: no kernel); continuing uncompiled."
        ]
        assert same(plain, fallen)


class TestResume:
    @pytest.mark.slow
    @pytest.mark.parametrize("options", [OPTIONS, EVERYTHING], ids=["plain", "everything"])
    def test_an_interrupted_run_equals_an_uninterrupted_one(
        self, options: TrainingOptions, tiny_network: nn.Module, examples: Examples, tmp_path: Path
    ) -> None:
        whole = coarse(tiny_network)
        expected = train(tiny_network, whole, examples, options)

        def interrupt(event: ProgressEvent) -> None:
            if event.completed == 16:  # after the checkpoint of step 12
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(tiny_network, coarse(tiny_network), examples, options, CheckpointDir(tmp_path, "id", interrupt))
        resumed, steps = coarse(tiny_network), []
        place = CheckpointDir(tmp_path, "id", lambda event: steps.append(event.completed))
        history = train(tiny_network, resumed, examples, options, place)
        assert steps == list(range(13, 25))
        assert same(resumed, whole)
        assert curves(history) == curves(expected)

    def test_a_finished_run_is_taken_as_it_is(
        self, tiny_network: nn.Module, examples: Examples, tmp_path: Path
    ) -> None:
        first, again = coarse(tiny_network), coarse(tiny_network)
        history = train(tiny_network, first, examples, place=CheckpointDir(tmp_path, "id"))
        steps: list[ProgressEvent] = []
        assert train(tiny_network, again, examples, place=CheckpointDir(tmp_path, "id", steps.append)) == history
        assert steps == []
        assert same(first, again)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "checkpoint-00000024.safetensors",
            CHECKPOINT_FILE,
        ]

    def test_another_run_s_folder_is_refused(self, tiny_network: nn.Module, examples: Examples, tmp_path: Path) -> None:
        train(tiny_network, coarse(tiny_network), examples, place=CheckpointDir(tmp_path, "one"))
        with pytest.raises(DataError, match=r"checkpoint of another run \(digest one, this run has two\)"):
            train(tiny_network, coarse(tiny_network), examples, place=CheckpointDir(tmp_path, "two"))

    @pytest.mark.parametrize("damage", ["json", "tensors", "missing"])
    def test_damage_is_noticed(self, damage: str, tiny_network: nn.Module, examples: Examples, tmp_path: Path) -> None:
        train(tiny_network, coarse(tiny_network), examples, place=CheckpointDir(tmp_path, "id"))
        tensors = next(tmp_path.glob("*.safetensors"))
        if damage == "json":
            (tmp_path / CHECKPOINT_FILE).write_text("{")
        elif damage == "tensors":
            tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
        else:
            tensors.unlink()
        with pytest.raises(
            DataError, match=r"The checkpoint in .* is damaged: .*Delete the folder to start training over"
        ):
            read_checkpoint(tmp_path, "id")

    def test_a_newer_format_is_refused(self, tiny_network: nn.Module, examples: Examples, tmp_path: Path) -> None:
        train(tiny_network, coarse(tiny_network), examples, place=CheckpointDir(tmp_path, "id"))
        path = tmp_path / CHECKPOINT_FILE
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
        with pytest.raises(DataError, match="has format version 2, but this dfq-plugins reads versions up to 1"):
            read_checkpoint(tmp_path, "id")

    def test_the_state_of_another_network_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"The checkpoint belongs to another network: 'weight' does not match"):
            restore(nn.Linear(3, 2), capture(nn.Linear(2, 2)))


class Poisoned(nn.Module):
    """Answers with NaN from its n-th call in training mode on."""

    def __init__(self, network: nn.Module, calls: int) -> None:
        super().__init__()
        self.network, self.calls = network, calls

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls -= self.training
        outputs: Tensor = self.network(inputs)
        return outputs * float("nan") if self.calls < 0 and self.training else outputs


class TestBadInput:
    def test_a_loss_that_is_not_finite_brings_the_last_good_state_back(
        self, tiny_network: nn.Module, examples: Examples, tmp_path: Path
    ) -> None:
        student = Poisoned(coarse(tiny_network), calls=15)
        told = (
            r"Training diverged: the loss was nan at step 16 of 24 \(learning rate 0.03, scales 0.0004\). The "
            r"student was restored to its state after step 12. Its checkpoint is in .*Lower learning_rate"
        )
        with pytest.raises(DivergedError, match=told):
            train(tiny_network, student, examples, place=CheckpointDir(tmp_path, "id"))
        good = read_checkpoint(tmp_path, "id")
        assert good is not None
        assert good.step == 12
        assert all(torch.equal(value, good.tensors["student"][name]) for name, value in capture(student).items())
        assert all(value.isfinite().all() for value in student.state_dict().values())

    def test_a_student_that_starts_broken(self, tiny_network: nn.Module, examples: Examples) -> None:
        student = coarse(tiny_network)
        student.linear.weight.data.fill_(float("inf"))
        with pytest.raises(DivergedError, match="the held-out loss was nan at step 1"):
            train(tiny_network, student, examples)

    def test_outputs_of_another_shape(self, tiny_network: nn.Module, examples: Examples) -> None:
        student = coarse(tiny_network)
        student.linear = nn.Linear(8, 3)
        told = (
            r"must return the same outputs, got \(4,\) values per sample from the teacher and \(3,\) from the student"
        )
        with pytest.raises(ModelError, match=told):
            train(tiny_network, student, examples)

    def test_nothing_to_train(self, tiny_network: nn.Module, examples: Examples) -> None:
        with pytest.raises(ModelError, match="needs trainable parameters, and TinyNetwork has none"):
            train(tiny_network, coarse(tiny_network).requires_grad_(False), examples)

    def test_no_term(self, tiny_network: nn.Module) -> None:
        with pytest.raises(UsageError, match="All weights of the distillation loss are 0"):
            DistillationLoss(tiny_network, {"kl_weight": 0, "distance_weight": 0})
        criterion = DistillationLoss(tiny_network, {"kl_weight": 0}, num_classes=4)
        with pytest.raises(UsageError, match="No term of the distillation loss applies to the outputs"):
            criterion(torch.zeros(2, 4), torch.zeros(2, 3, 8, 8))

    def test_too_few_samples(self) -> None:
        with pytest.raises(DataError, match="at least 2 samples, one of them held out, got 1"):
            split_held_out(Examples(torch.zeros(1, 3)), 0.1, 0)

    def test_a_wrong_option_says_what_is_right(self, tiny_network: nn.Module) -> None:
        with pytest.raises(UsageError, match=r"Option 'temperature' of fine-tuning cannot be 0.*Give float > 0"):
            DistillationLoss(tiny_network, {"temperature": 0})


class TestBatches:
    def test_every_pass_holds_every_example_once(self) -> None:
        batches = TrainingBatches(Examples(torch.arange(10.0)[:, None]), replace(OPTIONS, batch_size=4), None)
        stream = torch.cat([batches.batch(step).inputs for step in range(5)]).flatten()
        assert sorted(stream[:10].tolist()) == sorted(stream[10:].tolist()) == list(range(10))
        assert stream[:10].tolist() != stream[10:].tolist()

    def test_any_step_can_be_asked_for_first(self) -> None:
        examples = Examples(torch.randn(10, 3, 4, 4, generator=rng_for(0)))
        options = replace(OPTIONS, batch_size=25, mixup=1.0, jitter=1)  # a batch larger than the data
        forward = [TrainingBatches(examples, options, None).batch(step).inputs for step in range(3)]
        assert torch.equal(TrainingBatches(examples, options, None).batch(2).inputs, forward[2])
        assert len(forward[2]) == 25

    def test_a_border_shifts_and_mirrors_over_what_lies_outside(self) -> None:
        image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
        options = replace(OPTIONS, batch_size=1, padding=2)
        batches = TrainingBatches(Examples(image), options, None, (-9.0,))
        shown = {tuple(batches.batch(step).inputs.flatten().tolist()) for step in range(200)}
        padded = nn.functional.pad(image, (2, 2, 2, 2), value=-9.0)
        crops = [padded[0, 0, top : top + 4, left : left + 4] for top in range(5) for left in range(5)]
        expected = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(1))}
        # A mirrored image is shifted after it was mirrored, which gives the same set.
        assert shown <= expected
        assert len(shown) > 40

    def test_absolute_learning_rates(self, tiny_network: nn.Module) -> None:
        from dfq_plugins.distillation.adam import build_optimizer

        options = replace(OPTIONS, learning_rate=0.002, scale_learning_rate=0.5, learning_rate_unit="absolute")
        scale: Any = tiny_network.linear.bias
        optimizer = build_optimizer(tiny_network, [scale], options)
        assert sorted({group["base"] for group in optimizer.param_groups}) == [0.002, 0.5]

    def test_relative_steps_fit_each_channel_and_each_scale(self) -> None:
        from dfq_plugins.distillation.adam import build_optimizer, set_learning_rate

        network = nn.Linear(2, 2)
        network.register_parameter("scale", nn.Parameter(torch.tensor([4.0, -0.5])))
        with torch.no_grad():
            network.weight.copy_(torch.tensor([[3.0, -3.0], [0.1, 0.1]]))
            network.bias.copy_(torch.tensor([0.6, -0.8]))
        before = {name: value.clone() for name, value in network.named_parameters()}
        options = replace(OPTIONS, learning_rate=0.01, scale_learning_rate=0.1)
        scale: Any = network.scale
        optimizer = build_optimizer(network, [scale], options)
        set_learning_rate(optimizer, 0.5)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved = {name: before[name] - value for name, value in network.named_parameters()}
        # Adam's first step has the size of the rate, whatever the gradient.
        torch.testing.assert_close(moved["weight"], 0.005 * torch.tensor([[3.0, 3.0], [0.1, 0.1]]))
        torch.testing.assert_close(moved["bias"], 0.005 * torch.full((2,), 0.5**0.5))
        torch.testing.assert_close(network.scale, before["scale"] * torch.tensor([-0.05, 0.05]).exp())

    def test_parts_do_not_overlap(self) -> None:
        trained_on, held_out = split_held_out(Examples(torch.arange(50.0)), 0.1, seed=1)
        assert len(held_out) == 5
        assert sorted([*trained_on.inputs.tolist(), *held_out.inputs.tolist()]) == list(range(50))

    def test_mixup_mixes_labels_by_the_same_share(self) -> None:
        one_hot = torch.eye(4)
        mixed = mix_up(Examples(one_hot, torch.arange(4)), 1.0, 4, torch.Generator().manual_seed(1))
        assert mixed.labels is not None
        assert torch.allclose(mixed.inputs, mixed.labels)
        assert not torch.equal(mixed.inputs, one_hot)

    def test_mixup_draws_from_a_beta_distribution(self) -> None:
        pair = Examples(torch.tensor([[0.0], [1.0]]))
        shares = torch.cat([mix_up(pair, 2.0, None, rng_for(0, step)).inputs[1] for step in range(400)])
        mixed = shares[(shares > 0) & (shares < 1)]
        assert mixed.mean().item() == pytest.approx(0.5, abs=0.05)
        assert mixed.var().item() == pytest.approx(0.05, abs=0.015)  # 1 / (4 (2 alpha + 1))


def test_states_are_judged_at_the_temperature_of_the_training(tiny_network: nn.Module, examples: Examples) -> None:
    options = replace(OPTIONS, temperature=3.0)
    student = coarse(tiny_network)
    found = HeldOut(examples, DistillationLoss(tiny_network, options, num_classes=4), 7).judge(student)
    with torch.no_grad():
        answers, outputs = tiny_network(examples.inputs), student(examples.inputs)
    pairs = zip(outputs.split(1), answers.split(1), strict=True)
    each = torch.stack([kl_divergence(output, answer, 3.0) for output, answer in pairs])
    assert found.loss == pytest.approx(float(each.mean()), rel=1e-4)
    assert found.error == pytest.approx(float(each.std(correction=0)) / len(each) ** 0.5, rel=1e-4)
    assert found.agreement == pytest.approx(float((answers.argmax(1) == outputs.argmax(1)).float().mean()))


def test_options_are_listed_with_help() -> None:
    from dfq_plugins.host.options import describe_options

    rows = describe_options(TrainingOptions)
    assert all(row.help for row in rows)
    assert re.fullmatch(r"frozen or reestimated or none", next(row.type for row in rows if row.name == "batch_norm"))


def test_gradients_are_clipped_at_each_step(monkeypatch: pytest.MonkeyPatch, tiny_network: nn.Module) -> None:
    clip, seen = torch.nn.utils.clip_grad_norm_, []

    def watched(parameters: Any, largest: float) -> Any:
        seen.append(largest)
        return clip(parameters, largest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    inputs = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    spec = InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4)
    distill(
        tiny_network, tiny_network, inputs, spec=spec, training={"steps": 3, "batch_size": 8, "gradient_clip": 0.25}
    )
    assert seen == [0.25] * 3


def test_order_and_augmentation_follow_the_seed() -> None:
    examples = Examples(torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)))

    def shown(seed: int, **more: Any) -> tuple[Tensor, Tensor]:
        batches = TrainingBatches(examples, TrainingOptions(batch_size=16, seed=seed, **more), None)
        return batches.indices(1), batches.batch(1).inputs

    for more in ({}, {"padding": 1}, {"jitter": 2}):
        (first, inputs), (again, same), (other, others) = (shown(seed, **more) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert torch.equal(inputs, same)
        assert not torch.equal(first, other)
        assert not torch.equal(inputs, others)
    order = examples.take(torch.arange(16))
    one, two = (presented(order, TrainingOptions(padding=1, seed=seed), 0, None).inputs for seed in (0, 1))
    assert not torch.equal(one, two)
