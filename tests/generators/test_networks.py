"""Generators that are networks: their shape, what they learn, what they leave alone, and how they resume."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import dfq_plugins
from dfq_plugins.cli import cli
from dfq_plugins.distillation import terms
from dfq_plugins.distillation.batches import Examples
from dfq_plugins.distillation.loop import Student, train_student
from dfq_plugins.distillation.loss import DistillationLoss
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.distillation.sources import GeneratorSource
from dfq_plugins.distillation.state import capture
from dfq_plugins.errors import DataError, DivergedError, ModelError, UsageError
from dfq_plugins.generators.adversarial import AdversarialGenerator
from dfq_plugins.generators.gdfq import GdfqGenerator
from dfq_plugins.generators.image_network import ImageNetwork
from dfq_plugins.generators.options import AdversarialOptions, GdfqOptions
from dfq_plugins.host.options import describe_options, parse_options
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.quantization.finetune import FinetuneRun, finetune
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.types import ProgressEvent

SMALL = {"width": 8, "latent": 10, "precision": "float32"}
TRAINING = {"steps": 12, "batch_size": 16, "num_evaluations": 3, "teacher_precision": "float32"}
PAPER = InputSpec((3, 32, 32), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 10)


def coarse(teacher: nn.Module) -> nn.Module:
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_((parameter * 4).round() / 4)
    return student.train()


def adversarial(teacher: nn.Module, spec: InputSpec, seed: int = 0, **options: Any) -> AdversarialGenerator:
    made = AdversarialGenerator(AdversarialOptions(**{**SMALL, "warm_up": 0, **options}))
    made.begin(frozen_copy(teacher), spec, torch.Generator().manual_seed(seed))
    return made


def gdfq(teacher: nn.Module, spec: InputSpec, seed: int = 0, **options: Any) -> GdfqGenerator:
    made = GdfqGenerator(GdfqOptions(**{**SMALL, **options}))
    made.begin(frozen_copy(teacher), spec, torch.Generator().manual_seed(seed))
    return made


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class TestNetwork:
    def test_at_32_pixels_it_is_the_papers(self) -> None:
        network = ImageNetwork(PAPER, 100, 128, bounded=False)
        shapes = [tuple(parameter.shape) for name, parameter in network.named_parameters() if name.endswith("weight")]
        norms = [(128,), (128,), (64,), (3,)]
        weights = [(128 * 8 * 8, 100), (128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]
        assert sorted(shapes) == sorted([*weights, *norms])
        seen: list[tuple[str, tuple[int, ...]]] = []
        for name, module in network.named_modules():
            if not list(module.children()):
                module.register_forward_hook(lambda _m, _i, output, name=name: seen.append((name, tuple(output.shape))))
        network(torch.randn(2, 100))
        assert seen == [
            ("start", (2, 8192)),
            ("start_norm", (2, 128, 8, 8)),
            ("convolutions.0", (2, 128, 16, 16)),
            ("norms.0", (2, 128, 16, 16)),
            ("convolutions.1", (2, 64, 32, 32)),
            ("norms.1", (2, 64, 32, 32)),
            ("last", (2, 3, 32, 32)),
            ("last_norm", (2, 3, 32, 32)),
        ]

    @pytest.mark.parametrize("shape", [(1, 8, 8), (1, 49, 10), (3, 40, 24), (4, 96, 96), (2, 3, 5)])
    def test_it_takes_any_size_and_number_of_channels(self, shape: tuple[int, ...]) -> None:
        made = ImageNetwork(InputSpec(shape, value_range=(-1.0, 3.0)), 10, 8)(torch.randn(4, 10))
        assert made.shape == (4, *shape)

    def test_a_bounded_output_fills_the_range_of_each_channel_and_keeps_inside(self) -> None:
        spec = InputSpec((2, 8, 8), (0.0, 50.0), (1.0, 100.0), (0.0, 255.0))
        network = ImageNetwork(spec, 10, 8)
        with torch.no_grad():
            network.last_norm.weight.mul_(100)
        made = network(torch.randn(64, 10))
        assert made.amin((0, 2, 3)).tolist() == pytest.approx(spec.bounds[0])  # type: ignore[index]
        assert made.amax((0, 2, 3)).tolist() == pytest.approx(spec.bounds[1])  # type: ignore[index]

    def test_where_no_range_is_known_it_ends_in_batch_norm(self) -> None:
        made = ImageNetwork(InputSpec((1, 8, 8)), 10, 8)(torch.randn(256, 10))
        assert made.mean().item() == pytest.approx(0.0, abs=0.01)
        assert made.std().item() == pytest.approx(1.0, abs=0.01)

    def test_inputs_that_are_no_images(self) -> None:
        with pytest.raises(
            UsageError, match=r"makes images \(channels, height, width\), got the input shape \(40, 9\)"
        ):
            ImageNetwork(InputSpec((40, 9)), 10, 8)


class TestPreset:
    def test_it_holds_the_papers_values(self) -> None:
        options = parse_options(AdversarialOptions, {"preset": "zhu2020"})
        assert (options.output, options.learning_rate, options.student_steps) == ("batch-norm", 0.001, 10)
        assert (options.attention_weight, options.kl_reduction, options.batch_norm_weight) == (250.0, "mean", 0.0)
        training = parse_options(TrainingOptions, {"preset": "zhu2020", "steps": "50"})
        assert (training.learning_rate, training.learning_rate_unit) == (0.002, "absolute")
        assert (training.steps, training.batch_size, training.gradient_clip) == (50, 128, 5.0)
        assert (training.attention_weight, training.kl_reduction, training.temperature) == (250.0, "mean", 1.0)

    def test_what_is_given_beside_it_wins_also_where_it_is_the_default(self) -> None:
        options = parse_options(AdversarialOptions, {"preset": "zhu2020", "output": "bounded"})
        assert (options.output, options.attention_weight) == ("bounded", 250.0)

    def test_none_is_the_default(self) -> None:
        assert parse_options(AdversarialOptions, {"preset": "none"}) == AdversarialOptions()

    def test_an_unknown_one(self) -> None:
        with pytest.raises(UsageError, match=r"Unknown preset 'zhu2021' of x. Did you mean 'zhu2020'\?"):
            parse_options(AdversarialOptions, {"preset": "zhu2021"}, owner="x")

    def test_it_is_listed(self) -> None:
        assert describe_options(AdversarialOptions)[0].name == "preset"
        assert describe_options(AdversarialOptions)[0].type == "zhu2020"
        assert "preset" in CliRunner().invoke(cli, ["plugins", "adversarial"]).stdout


class TestAdversarial:
    def rounds(self, made: Any, student: nn.Module, count: int, size: int = 16) -> list[torch.Tensor]:
        found = []
        for _ in range(count):
            made.feedback(student)
            found.append(made.batch(size).inputs)
        return found

    def test_it_learns_to_make_them_disagree(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        student = coarse(tiny_network).eval()
        made = adversarial(tiny_network, tiny_spec, student_steps=1, batch_norm_weight=0.0, learning_rate=0.01)
        batches = self.rounds(made, student, 60)

        def distance(inputs: torch.Tensor) -> float:
            return terms.kl_divergence(student(inputs), tiny_network(inputs)).item()

        assert distance(torch.cat(batches[-5:])) > 1.5 * distance(torch.cat(batches[:5]))

    def test_with_statistics_it_stays_nearer_to_them(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        student, divergences = coarse(tiny_network), []
        for weight in (0.0, 10.0):
            made = adversarial(tiny_network, tiny_spec, student_steps=1, batch_norm_weight=weight, learning_rate=0.01)
            images = torch.cat(self.rounds(made, student, 60)[-5:])
            watched = gdfq(tiny_network, tiny_spec, divergence="kl").teacher
            divergences.append(watched.answer_as_trained(images, torch.Generator())[1].item())
        assert divergences[1] < 0.5 * divergences[0]

    def test_the_student_takes_ten_steps_on_the_images_of_one(
        self, tiny_network: nn.Module, tiny_spec: InputSpec
    ) -> None:
        batches = self.rounds(adversarial(tiny_network, tiny_spec), coarse(tiny_network), 21)
        assert all(torch.equal(batches[0], batch) for batch in batches[1:10])
        assert all(torch.equal(batches[10], batch) for batch in batches[11:20])
        assert not torch.equal(batches[0], batches[10])
        assert not torch.equal(batches[10], batches[20])

    @pytest.mark.parametrize("distance", ["kl", "symmetrized-kl", "logit"])
    def test_its_loss_is_minus_the_distance(
        self, distance: str, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        student, images = coarse(tiny_network).eval(), tiny_batches[0]
        outputs, answers = student(images), tiny_network(images)
        term = {"kl": terms.kl_divergence, "symmetrized-kl": terms.symmetrized_kl, "logit": terms.logit_difference}
        made = adversarial(tiny_network, tiny_spec, distance=distance, batch_norm_weight=0.0)
        loss = made.loss(images, torch.zeros(16, dtype=torch.long), student)
        assert loss.item() == pytest.approx(-term[distance](outputs, answers).item(), rel=1e-5)  # type: ignore[operator]

    def test_the_papers_loss_is_the_mean_over_elements_and_the_attention(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        student, images = coarse(tiny_network).eval(), tiny_batches[0]
        options = parse_options(
            AdversarialOptions, {**SMALL, "preset": "zhu2020", "feature_layers": ("conv", "linear")}
        )
        made = AdversarialGenerator(options)
        made.begin(frozen_copy(tiny_network), tiny_spec, torch.Generator().manual_seed(0))
        loss = made.loss(images, torch.zeros(16, dtype=torch.long), student).item()
        log_student, answers = student(images).log_softmax(1), tiny_network(images).softmax(1)
        divergence = nn.functional.kl_div(log_student, answers, reduction="none").mean().item()

        def before(network: Any) -> torch.Tensor:  # what enters the hook "conv"
            return network.relu1(network.norm1(network.stem(images))).square().mean(1).flatten(1)

        ours, theirs = before(student), before(tiny_network)
        maps = ours / ours.norm(dim=1, keepdim=True) - theirs / theirs.norm(dim=1, keepdim=True)
        assert loss == pytest.approx(-divergence - 250 * maps.norm(dim=1).mean().item(), rel=1e-4)

    def test_the_student_stays_as_it_is(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        student = coarse(tiny_network)  # in training mode: a forward pass alone would move its BatchNorm
        student.linear.bias.requires_grad_(False)  # type: ignore[union-attr]
        before = capture(student)
        self.rounds(adversarial(tiny_network, tiny_spec, attention_weight=1.0, feature_layers=("conv",)), student, 3)
        assert same(capture(student), before)
        assert student.training
        taken = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
        assert taken == {name: name != "linear.bias" for name in taken}
        assert all(parameter.grad is None for parameter in student.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())

    @pytest.mark.parametrize("calibrator", ["torch-ao", "pytorch-quantization", "brevitas"])
    def test_a_student_of_any_framework_stays_as_it_is(
        self, calibrator: str, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        worker = get_registry().create("calibrator", calibrator)  # type: ignore[call-overload]
        student = worker.prepare(tiny_network, tiny_spec, Recipe(4, 4), training=True)
        worker.calibrate(student, tiny_batches)
        student.train()
        before = capture(student)
        batches = self.rounds(adversarial(tiny_network, tiny_spec, student_steps=1), student, 3)
        assert same(capture(student), before)
        assert not torch.equal(batches[0], batches[1])

    def test_the_learning_rate_falls_with_the_training(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        made = adversarial(tiny_network, tiny_spec, student_steps=1)
        for share, expected in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
            made.progress(share)
            self.rounds(made, coarse(tiny_network), 1)
            assert made.optimizer.param_groups[0]["lr"] == pytest.approx(expected * 0.001, abs=1e-12)

    def test_gradients_are_clipped(self, tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: Any) -> None:
        norms: list[float] = []
        clip = nn.utils.clip_grad_norm_
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *given: norms.append(given[1]) or clip(*given))
        self.rounds(adversarial(tiny_network, tiny_spec), coarse(tiny_network), 1)
        assert norms == [5.0]

    def test_same_seed_same_images(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        student, found = coarse(tiny_network), []
        for seed, other in ((0, 1), (0, 2), (1, 3)):
            torch.manual_seed(other)
            state = torch.get_rng_state()
            found.append(torch.cat(self.rounds(adversarial(tiny_network, tiny_spec, seed), student, 11)))
            assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_without_a_student(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        with pytest.raises(UsageError, match=r"call feedback\(student\) before each batch\(size\)"):
            adversarial(tiny_network, tiny_spec).batch(16)

    def test_a_network_that_is_no_classifier(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        with pytest.raises(
            UsageError,
            match=r"The distance kl compares class probabilities; distance=logit compares values.*set num_classes",
        ):
            adversarial(tiny_network, replace(tiny_spec, num_classes=None))

    def test_statistics_of_a_network_without_any(self, tiny_spec: InputSpec) -> None:
        plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 4)).eval()
        with pytest.raises(ModelError, match="no BatchNorm layer with running statistics"):
            adversarial(plain, tiny_spec)
        assert len(self.rounds(adversarial(plain, tiny_spec, batch_norm_weight=0.0), coarse(plain), 1)) == 1

    def test_no_tap_with_places(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        made = adversarial(tiny_network, tiny_spec, attention_weight=1.0, feature_layers=("linear",))
        with pytest.raises(UsageError, match="compares spatial maps, and no pair of features has spatial positions"):
            self.rounds(made, coarse(tiny_network), 1)

    def test_a_loss_that_is_not_finite_stops_and_puts_the_student_back(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        class Broken(AdversarialGenerator):
            def loss(self, *given: Any) -> torch.Tensor:
                return super().loss(*given) * (math.nan if self._learned else 1.0)

        options = TrainingOptions(**{**TRAINING, "num_evaluations": 1})  # type: ignore[arg-type]
        student = coarse(tiny_network)
        made = Broken(AdversarialOptions(**SMALL, warm_up=0, student_steps=5))
        source = GeneratorSource(made, frozen_copy(tiny_network), tiny_spec, options)
        loss, held_out = DistillationLoss(tiny_network, options), Examples(tiny_batches[0])
        before = capture(student)
        with pytest.raises(DivergedError, match="The generator diverged: its loss was nan at generator step 2"):
            train_student(Student(student), loss, source, held_out, options)
        assert same(capture(student), before)


class TestGdfq:
    @pytest.mark.slow
    def test_it_makes_images_of_the_wanted_class_with_the_stored_statistics(
        self, tiny_network: nn.Module, tiny_spec: InputSpec
    ) -> None:
        made = gdfq(tiny_network, tiny_spec, warm_up=1, learning_rate=0.01, batch_norm_weight=5.0)
        first, last = [], []
        for step in range(120):
            batch = made.batch(32)
            assert batch.labels is not None
            right = (tiny_network(batch.inputs).argmax(1) == batch.labels).float().mean().item()
            divergence = made.teacher.answer_as_trained(batch.inputs, torch.Generator())[1].item()
            (first if step < 10 else last).append((right, divergence))
        early, late = (torch.tensor(part[-10:]).mean(0) for part in (first, last))
        assert late[0] > early[0] + 0.2
        assert late[1] < 0.7 * early[1]

    def test_it_learns_for_itself_before_the_students_first_step(
        self, tiny_network: nn.Module, tiny_spec: InputSpec
    ) -> None:
        made, sizes = gdfq(tiny_network, tiny_spec, warm_up=5), []
        taken = made.loss
        made.loss = lambda images, *given: sizes.append(len(images)) or taken(images, *given)  # type: ignore[method-assign, assignment, func-returns-value]
        made.batch(8)
        assert sizes == [8] * 6
        made.batch(8)
        assert sizes == [8] * 7

    @pytest.mark.slow
    def test_it_makes_a_data_set_by_itself(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        options = {**SMALL, "iterations": 60, "learning_rate": 0.01}
        given: dict[str, Any] = {"generator": "gdfq", "num_samples": 40, "options": options}
        whole = dfq_plugins.synthesize(tiny_network, tiny_spec, batch_size=16, **given)
        assert whole.manifest.labels == "conditional"
        batch = next(iter(whole.loader(batch_size=40)))
        assert batch.labels.bincount(minlength=4).min() >= 8
        assert (tiny_network(batch.inputs).argmax(1) == batch.labels).float().mean() > 0.5

    def test_one_network_makes_all_shards(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[int] = []
        take = GdfqGenerator.step
        monkeypatch.setattr(
            GdfqGenerator, "step", lambda self, size, student: steps.append(size) or take(self, size, student)
        )
        dfq_plugins.synthesize(
            tiny_network,
            tiny_spec,
            generator="gdfq",
            num_samples=40,
            batch_size=16,
            options={**SMALL, "iterations": 3, "step_samples": 7},
        )
        assert steps == [7] * 3

    def test_a_network_that_is_no_classifier(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        with pytest.raises(
            UsageError, match=r"makes images of given classes, so it needs a classifier; .*set num_classes"
        ):
            gdfq(tiny_network, replace(tiny_spec, num_classes=None))


@pytest.fixture
def tune(tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> Callable[..., FinetuneRun]:
    def tuned(generator: str, calibrator: str = "brevitas", **settings: Any) -> FinetuneRun:
        options = {**SMALL, "warm_up": 3, "student_steps": 1 if generator == "gdfq" else 4}
        settings["training"] = {**TRAINING, **settings.pop("training", {})}
        given: dict[str, Any] = {"recipe": "w4a4", "spec": tiny_spec, "generator_options": options, **settings}
        return finetune(tiny_network, torch.cat(tiny_batches), calibrator=calibrator, generator=generator, **given)

    return tuned


@pytest.mark.parametrize("generator", ["adversarial", "gdfq"])
class TestFinetuning:
    @pytest.mark.slow
    def test_a_run_resumes_exactly(self, generator: str, tune: Callable[..., FinetuneRun], tmp_path: Path) -> None:
        training = {"mixup": 0.5, "padding": 1}
        whole = tune(generator, training=training)

        def interrupt(event: ProgressEvent) -> None:
            if event.stage == "finetune" and event.completed == 7:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(generator, training=training, work=tmp_path, listeners=[interrupt])
        resumed = tune(generator, training=training, work=tmp_path)
        assert same(capture(resumed.model), capture(whole.model))
        assert [point.held_out_loss for point in resumed.history] == [point.held_out_loss for point in whole.history]

    @pytest.mark.slow
    def test_the_warm_up_is_reported_once(
        self, generator: str, tune: Callable[..., FinetuneRun], tmp_path: Path
    ) -> None:
        events: list[ProgressEvent] = []
        for _ in range(2):  # the second time everything is there already
            tune(generator, work=tmp_path, listeners=[events.append])
        told = [(event.completed, event.total) for event in events if event.stage == "warm up"]
        assert told == [(1, 3), (2, 3), (3, 3)]

    @pytest.mark.slow
    def test_its_settings_are_part_of_the_run(
        self, generator: str, tune: Callable[..., FinetuneRun], tmp_path: Path
    ) -> None:
        tune(generator, work=tmp_path)
        tune(generator, work=tmp_path, generator_options={**SMALL, "width": "8", "warm_up": 3, "student_steps": 4} | (
            {"student_steps": 1} if generator == "gdfq" else {}
        ))  # fmt: skip
        with pytest.raises(DataError, match="checkpoint of another run"):
            tune(generator, work=tmp_path, generator_options={**SMALL, "width": 9})

    @pytest.mark.slow
    def test_the_model_stays_as_it_was(
        self, generator: str, tune: Callable[..., FinetuneRun], tiny_network: nn.Module
    ) -> None:
        before, random = capture(tiny_network), torch.get_rng_state()
        tune(generator, "torch-ao", recipe="w8a8")
        assert same(capture(tiny_network), before)
        assert torch.equal(torch.get_rng_state(), random)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_network.modules())

    def test_inputs_that_are_no_images_are_refused_before_anything_is_calibrated(self, generator: str) -> None:
        network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).eval()
        events: list[ProgressEvent] = []
        with pytest.raises(UsageError, match=r"got the input shape \(2, 8\)"):
            finetune(
                network,
                torch.randn(20, 2, 8),
                calibrator="pytorch-quantization",
                generator=generator,
                listeners=[events.append],
            )
        assert events == []

    @pytest.mark.slow
    def test_on_the_command_line(self, generator: str, tmp_path: Path) -> None:
        model = ["dfq_plugins.demo.network:digits_network", "--shape", "1,8,8", "--mean", "0.3", "--std", "0.375"]
        made = CliRunner().invoke(
            cli,
            [
                *("synthesize", *model, "--value-range", "0,1", "--num-classes", "10", "--generator", "gaussian"),
                *("-n", "40", "-o", str(tmp_path)),
            ],
        )
        assert made.exit_code == 0, made.output
        quick = ["-G", "width=8", "-G", "warm_up=2"]
        given = ["-T", "steps=6", "-T", "batch_size=16", "--recipe", "w4a4", "--calibrator", "pytorch-quantization"]
        done = CliRunner().invoke(cli, ["finetune", model[0], str(tmp_path), *given, "--generator", generator, *quick])
        assert done.exit_code == 0, done.output
        assert "Fine-tuned for 6 steps" in done.stdout


def test_gdfq_on_the_command_line(tmp_path: Path) -> None:
    given = ["--shape", "1,8,8", "--mean", "0.3", "--std", "0.375", "--value-range", "0,1", "-n", "40"]
    given += ["--num-classes", "10"]
    quick = ["-O", "iterations=5", "-O", "width=8", "-o", str(tmp_path)]
    model = "dfq_plugins.demo.network:digits_network"
    made = CliRunner().invoke(cli, ["synthesize", model, *given, *quick, "--generator", "gdfq"])
    assert made.exit_code == 0, made.output
    assert "40 samples from gdfq" in made.stdout


def test_adversarial_makes_no_data_set(tmp_path: Path) -> None:
    model = "dfq_plugins.demo.network:digits_network"
    given = ["--shape", "1,8,8", "--generator", "adversarial", "-o", str(tmp_path / "set")]
    refused = CliRunner().invoke(cli, ["synthesize", model, *given])
    assert refused.exit_code == 2
    assert "learns from a student" in refused.output
    assert "dfq finetune with --generator adversarial" in refused.output.replace("\n", " ")
