"""`DistillationLoss` in a user's own loop, and feature hooks through what each framework makes of a network."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch user reads
from torch import Tensor, nn

import dfq_plugins
from dfq_plugins.distillation import DistillationLoss, TrainingOptions
from dfq_plugins.distillation.feature_hooks import FeatureHooks, FeaturePair, resolve_feature_layers, stages_alike
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.network.probe import block_ends, record_calls
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4)


class Block(nn.Module):
    """A residual block with functional activations, like those of most published networks."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


class Residual(nn.Module):
    """Two stages, pooling as a module, and a classifier."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stage1 = Block(width, width, 1)
        self.stage2 = Block(width, 2 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2 * width, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stage2(self.stage1(F.relu(self.norm(self.conv(inputs)))))
        return self.linear(self.pool(hidden).flatten(1))


@pytest.fixture
def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, seen = Residual().train(), torch.randn(64, 3, 8, 8).clamp(-2, 2)
        with torch.no_grad():
            for _ in range(60):  # BatchNorm statistics as if trained
                network(seen)
        return network.eval()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


def prepared_by(name: str, teacher: nn.Module, inputs: Tensor, **options: Any) -> nn.Module:
    from dfq_plugins.host.registry import get_registry

    worker = get_registry().create("calibrator", name, options)
    student = worker.prepare(teacher, SPEC, Recipe(8, 8), training=True)
    with torch.no_grad():
        worker.calibrate(student, [inputs])
    return student.eval()


FRAMEWORKS = ["torch-ao", "pytorch-quantization", "brevitas"]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("pair", ["block-ends", "stage2.conv1", "stage1.conv2", "stage2", "linear", "pool"])
def test_what_enters_a_module_is_the_same_in_every_framework(
    framework: str, pair: str, teacher: nn.Module, inputs: Tensor
) -> None:
    student = prepared_by(framework, teacher, inputs)
    pairs = resolve_feature_layers((pair,), teacher, student, inputs)
    with (
        FeatureHooks(teacher, [pair.teacher for pair in pairs]) as theirs,
        FeatureHooks(student, [pair.student for pair in pairs]) as ours,
        torch.no_grad(),
    ):
        teacher(inputs)
        student(inputs)
        for float_feature, quantized in zip(theirs.collect(), ours.collect(), strict=True):
            assert type(quantized) is Tensor
            assert (float_feature - quantized).norm() < 0.05 * float_feature.norm()  # eight bits apart


def test_block_ends_are_before_each_downsampling(teacher: nn.Module, inputs: Tensor) -> None:
    # The shortcut of stage 2 downsamples too, but reads what its first convolution reads.
    assert block_ends(record_calls(teacher, inputs), inputs) == ("stage2.conv1", "pool", "linear")


def test_a_dissolved_block_is_found_by_what_it_reads(teacher: nn.Module, inputs: Tensor) -> None:
    student = prepared_by("torch-ao", teacher, inputs)
    assert resolve_feature_layers(("stage2",), teacher, student, inputs) == (FeaturePair("stage2", "stage2.conv1"),)


def test_a_merged_tap_is_refused(teacher: nn.Module, inputs: Tensor) -> None:
    student = prepared_by("brevitas", teacher, inputs)
    told = (
        r"The module 'stage1.bn1' is missing from the quantized network: the framework fused it .* 'conv', "
        r"'stage1.conv1'"
    )
    with pytest.raises(ModelError, match=told):
        resolve_feature_layers(("stage1.bn1",), teacher, student, inputs)


def test_an_unknown_tap_names_the_nearest(teacher: nn.Module, inputs: Tensor) -> None:
    with pytest.raises(UsageError, match=r"none named 'stage3.conv1'. Did you mean 'stage2.conv1'\?.*or block-ends"):
        resolve_feature_layers(("stage3.conv1",), teacher, teacher, inputs)


def test_a_tap_of_another_shape(teacher: nn.Module, inputs: Tensor) -> None:
    student = copy.deepcopy(teacher)
    student.pool = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1))
    student.stage1.conv2 = nn.Conv2d(4, 4, 3, 2, 1)
    student.stage1.shortcut = nn.Conv2d(4, 4, 1, 2)
    told = (
        r"The module 'stage2.conv1' reads a tensor of shape \(16, 4, 8, 8\) in the teacher and \(16, 4, 4, 4\) in the"
    )
    with pytest.raises(ModelError, match=told):
        resolve_feature_layers(("stage2.conv1",), teacher, student, inputs)


def test_stages_are_alike_by_their_places(teacher: nn.Module, inputs: Tensor) -> None:
    assert stages_alike(teacher, Residual(), inputs) == ("stage2.conv1", "pool", "linear")
    assert stages_alike(teacher, Residual(width=3).eval(), inputs) == ("stage2.conv1", "pool")
    assert stages_alike(teacher, nn.Flatten(), inputs) == ()


def test_blocks_in_other_places_are_not_compared(inputs: Tensor) -> None:
    def network(blocks: int) -> nn.Module:
        row = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(blocks)))
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), row, nn.Linear(8, 4))

    assert stages_alike(network(5), network(3), inputs) == ("1", "2.0.0", "3")
    assert stages_alike(network(3), network(3), inputs) == ("1", "2.0.0", "2.1.0", "2.2.0", "3")


def test_a_network_without_stages_asks_for_taps(inputs: Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    with pytest.raises(
        UsageError, match=r"no module of the network downsamples. Name modules in the option feature_layers"
    ):
        resolve_feature_layers(("block-ends",), network, network, inputs)


class TestDropIn:
    def test_it_is_the_named_sum(self, teacher: nn.Module, inputs: Tensor) -> None:
        student = prepared_by("pytorch-quantization", teacher, inputs)
        options = {
            "kl_weight": 0.5, "temperature": 2, "logit_weight": 0.25, "label_weight": 3, "teacher_precision": "float32"
        }  # fmt: skip
        loss = DistillationLoss(teacher, options, num_classes=4)
        outputs, answers = student(inputs), teacher(inputs)
        kl = 4 * F.kl_div((outputs / 2).log_softmax(1), (answers / 2).softmax(1), reduction="batchmean")
        labels = F.cross_entropy(outputs, answers.argmax(1))
        expected = 0.5 * kl + 0.25 * (outputs - answers).square().mean() + 3 * labels
        assert loss(outputs, inputs).item() == pytest.approx(expected.item(), rel=1e-4)
        assert set(loss.latest) == {"kl", "logit", "label"}
        assert not any(term.requires_grad for term in loss.latest.values())

    @pytest.mark.slow
    @pytest.mark.parametrize("framework", FRAMEWORKS)
    @pytest.mark.parametrize(
        "options", [{}, {"feature_weight": 1.0, "attention_weight": 1.0}], ids=["plain", "feature_layers"]
    )
    def test_any_loop_learns_with_it(
        self, framework: str, options: dict[str, float], teacher: nn.Module, inputs: Tensor
    ) -> None:
        student = prepared_by(framework, teacher, inputs)
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.ndim > 1 and parameter.numel() > 50:
                    parameter.mul_(0.9)
        loss = DistillationLoss(teacher, options, num_classes=4, student=student, sample=inputs)
        optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-3)
        values = []
        for _ in range(10):
            optimizer.zero_grad()
            value = loss(student(inputs), inputs)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.8 * values[0]
        loss.close()
        hooks = [hook for module in student.modules() for hook in module._forward_pre_hooks.values()]
        assert not any("feature_layers" in getattr(hook, "__module__", "") for hook in hooks)

    def test_the_public_names(self) -> None:
        assert dfq_plugins.DistillationLoss is DistillationLoss
        assert dfq_plugins.TrainingOptions is TrainingOptions

    def test_an_optimizer_over_the_loss_does_not_find_the_teacher(self, teacher: nn.Module) -> None:
        loss = DistillationLoss(teacher)
        assert list(loss.parameters()) == []
        assert loss.state_dict() == {}
        assert loss.teacher is not teacher
        assert not loss.teacher.training

    def test_feature_terms_need_the_student(self, teacher: nn.Module) -> None:
        with pytest.raises(UsageError, match="read the student's features: call DistillationLoss"):
            DistillationLoss(teacher, {"feature_weight": 1.0})

    def test_the_student_must_run_first(self, teacher: nn.Module, inputs: Tensor) -> None:
        student = copy.deepcopy(teacher)
        loss = DistillationLoss(teacher, {"feature_weight": 1.0}, student=student, sample=inputs)
        with pytest.raises(
            UsageError, match="The student must run before its loss is computed: no feature was captured at"
        ):
            loss(teacher(inputs), inputs)

    def test_an_evaluation_in_between_leaves_no_old_feature(self, teacher: nn.Module, inputs: Tensor) -> None:
        student = copy.deepcopy(teacher)
        loss = DistillationLoss(
            teacher, {"feature_weight": 1.0, "teacher_precision": "float32"}, student=student, sample=inputs
        )
        student(inputs + 1)  # nobody collects these
        assert loss(student(inputs), inputs).item() == pytest.approx(0.0, abs=1e-5)

    def test_features_of_other_channels_need_places(self, teacher: nn.Module, inputs: Tensor) -> None:
        student = Residual(width=3).eval()
        options = {"feature_weight": 1.0, "feature_layers": ("linear",)}
        loss = DistillationLoss(teacher, options, num_classes=4, student=student, sample=inputs)
        with pytest.raises(
            UsageError,
            match="of the same shape, or with spatial positions if the channels differ, and no pair has either",
        ):
            loss(student(inputs), inputs)

    def test_attention_needs_places(self, teacher: nn.Module, inputs: Tensor) -> None:
        student = copy.deepcopy(teacher)
        loss = DistillationLoss(
            teacher, {"attention_weight": 1.0, "feature_layers": ("linear",)}, student=student, sample=inputs
        )
        with pytest.raises(UsageError, match="compares spatial maps, and no pair of features has spatial positions"):
            loss(student(inputs), inputs)

    def test_shapes_must_agree(self, teacher: nn.Module, inputs: Tensor) -> None:
        with pytest.raises(
            ModelError, match=r"got \(4,\) values per sample from the teacher and \(3,\) from the student"
        ):
            DistillationLoss(teacher)(torch.zeros(16, 3), inputs)


def test_options_may_be_a_record(teacher: nn.Module, inputs: Tensor) -> None:
    record = TrainingOptions(kl_weight=0.0, logit_weight=1.0, teacher_precision="bfloat16")
    found: Callable[..., Tensor] = DistillationLoss(teacher, record, num_classes=4)
    assert found(teacher(inputs), inputs).item() < 1e-2  # the teacher's bfloat16 alone


def test_the_mean_over_elements_is_that_over_samples_divided_by_the_classes(teacher: nn.Module) -> None:
    inputs, outputs = torch.randn(6, 3, 8, 8), torch.randn(6, 4)
    weights: dict[str, object] = {"kl_weight": 1.0, "symmetrized_kl_weight": 0.5, "teacher_precision": "float32"}
    per_sample, per_element = (
        DistillationLoss(teacher, {**weights, "kl_reduction": mean}, num_classes=4)(outputs, inputs)
        for mean in ("batchmean", "mean")
    )
    assert per_element.item() == pytest.approx(per_sample.item() / 4, rel=1e-5)
