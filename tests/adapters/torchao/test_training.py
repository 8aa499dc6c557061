"""Training in torchao: ranges from calibration, weights that are followed, and the same numbers after conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.distillation.adam import set_training_mode
from dfq_plugins.quantization.finetune import finetune
from dfq_plugins.types import InputSpec, Recipe
from dfq_torchao.calibrator import TorchaoCalibrator
from dfq_torchao.observers import activation_observers, weight_observers
from dfq_torchao.options import TorchaoOptions

if TYPE_CHECKING:
    from torch import Tensor

W8A8 = Recipe(8, 8)


def prepared(network: nn.Module, spec: InputSpec, batches: list[Tensor], **options: Any) -> tuple[Any, Any]:
    worker = TorchaoCalibrator(TorchaoOptions(**options))
    student = worker.prepare(network, spec, W8A8, training=True)
    worker.calibrate(student, batches)
    return worker, student


def test_before_any_step_it_computes_what_calibration_alone_gives(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    worker, student = prepared(tiny_network, tiny_spec, tiny_batches)
    plain = worker.prepare(tiny_network, tiny_spec, W8A8)
    worker.calibrate(plain, tiny_batches)
    expected = worker.convert(plain)(tiny_batches[0])
    step = expected.abs().max() / 128
    assert (worker.convert(student)(tiny_batches[0]) - expected).abs().max() <= step
    assert (student(tiny_batches[0]) - expected).abs().mean() <= step  # values between two levels may fall either way


def test_the_epsilon_of_batch_norm_is_kept(tiny_spec: InputSpec, tiny_batches: list[Tensor]) -> None:
    """torchao's own training graph replaces it by 1e-5."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.5), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    network[1].running_var.fill_(0.05)  # type: ignore[operator, union-attr]
    network.eval()
    _, student = prepared(network, tiny_spec, tiny_batches)
    expected = network(tiny_batches[0])
    assert (student(tiny_batches[0]) - expected).abs().max() < 0.1 * expected.abs().max()


def test_the_converted_model_computes_what_was_trained(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    worker, student = prepared(tiny_network, tiny_spec, tiny_batches)
    student.train()(tiny_batches[0]).square().sum().backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.sub_(0.02 * parameter.grad.sign() * parameter.abs().mean())
    trained = student.eval()(tiny_batches[0]).detach()
    difference = (worker.convert(student)(tiny_batches[0]) - trained).abs()
    assert difference.mean() < 0.01 * trained.abs().max()


def test_calibrated_ranges_stay_and_weights_are_followed(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    _, student = prepared(tiny_network, tiny_spec, tiny_batches)
    ranges = [float(quantizer.scale) for quantizer in activation_observers(student)]
    student(tiny_batches[0])
    weights = [quantizer.scale.clone() for quantizer in weight_observers(student)]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    student.train()(5 * tiny_batches[0])
    assert [float(quantizer.scale) for quantizer in activation_observers(student)] == ranges
    for quantizer, former in zip(weight_observers(student), weights, strict=True):
        assert torch.allclose(quantizer.scale, 0.5 * former, rtol=1e-3)


def test_moving_averages_follow_until_they_are_frozen(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    worker, student = prepared(tiny_network, tiny_spec, tiny_batches, training_ranges="moving-average")
    known, *others = activation_observers(student)
    before = [float(quantizer.scale) for quantizer in others]
    student.train()(5 * tiny_batches[0])
    moved = [float(quantizer.scale) for quantizer in others]
    assert all(after > former for after, former in zip(moved, before, strict=True))
    assert float(known.scale) == pytest.approx(4 / (known.quant_max - known.quant_min), rel=0.02)
    worker.freeze_ranges(student)
    student(10 * tiny_batches[0])
    assert [float(quantizer.scale) for quantizer in others] == moved


def test_dropout_and_batch_norm_stay_as_in_eval_mode(tiny_spec: InputSpec, tiny_batches: list[Tensor]) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    _, student = prepared(network.eval(), tiny_spec, tiny_batches)
    expected = student.eval()(tiny_batches[0])
    set_training_mode(student, batch_norm_frozen=True)
    assert torch.equal(student(tiny_batches[0]), expected)


@pytest.mark.slow
def test_finetuning_ends_in_a_checked_file(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor], tmp_path: Any
) -> None:
    settings = {"steps": 10, "batch_size": 16, "num_evaluations": 2, "teacher_precision": "float32"}
    run = finetune(
        *(tiny_network, torch.cat(tiny_batches)),
        calibrator="torchao",
        spec=tiny_spec,
        training=settings,
        output=tmp_path,
    )
    assert [artifact.path.name for artifact in run.artifacts] == ["model.exported.pt2"]
    assert run.agreement >= 0.8
