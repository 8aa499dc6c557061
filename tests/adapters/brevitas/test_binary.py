"""Binary weights, and activations that stay in float, through Brevitas's own quantizers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import dfq_plugins
from dfq_brevitas.bias import is_weight_layer
from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_brevitas.export import run_qonnx
from dfq_brevitas.framework import BinaryQuant, SignedBinaryWeightPerTensorConst, quant_nn
from dfq_brevitas.graph import end_layers, float_graph
from dfq_brevitas.notices import NOTICES
from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.quantization.formats import format_in_words
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_brevitas.framework import GraphModule

TRAINING = {"steps": 20, "batch_size": 16, "num_evaluations": 2, "teacher_precision": "float32"}


def calibrated(
    network: nn.Module, spec: InputSpec, batches: list[torch.Tensor], recipe: str = "binary", **options: Any
) -> tuple[BrevitasCalibrator, GraphModule]:
    worker = BrevitasCalibrator(BrevitasOptions(**options))
    student = worker.prepare(network, spec, Recipe.parse(recipe), training=True)
    worker.calibrate(student, batches)
    return worker, student


@pytest.fixture
def student(tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> Any:
    return calibrated(tiny_network, tiny_spec, tiny_batches)[1]


def test_weights_are_plus_and_minus_the_mean_of_each_channel(student: Any, tiny_network: nn.Module) -> None:
    weights = tiny_network.conv.weight.detach()
    expected = weights.sign() * weights.abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(student.conv.quant_weight().value, expected, atol=1e-6)
    assert int(student.conv.weight_quant.bit_width()) == 1


def test_batch_norm_stays_a_layer_unless_it_is_to_be_folded(
    student: Any, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    assert isinstance(student.norm2, nn.BatchNorm2d)
    _, merged = calibrated(tiny_network, tiny_spec, tiny_batches, merge_batch_norm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())


def test_they_may_share_one_value(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    _, student = calibrated(tiny_network, tiny_spec, tiny_batches, per_channel=False)
    assert len(student.conv.quant_weight().value.unique()) == 2  # type: ignore[union-attr, operator]


def test_the_quantizer_is_brevitas_own(student: Any) -> None:
    assert isinstance(student.conv, quant_nn.QuantConv2d)
    plain = quant_nn.QuantConv2d(3, 4, 1, weight_quant=SignedBinaryWeightPerTensorConst)
    assert type(student.conv.weight_quant.tensor_quant) is type(plain.weight_quant.tensor_quant)


def test_the_first_and_the_last_layer_stay_in_float(student: Any, tiny_network: nn.Module) -> None:
    assert (type(student.stem), type(student.linear)) == (nn.Conv2d, nn.Linear)
    assert torch.equal(student.linear.weight, tiny_network.linear.weight)  # type: ignore[union-attr]
    coverage = BrevitasCalibrator().describe(student)
    assert [(tensor.name, tensor.role, format_in_words(tensor.format)) for tensor in coverage.quantized] == [
        ("conv", "weight", "binary per channel")
    ]
    told = dict(coverage.unquantized)
    assert told["stem"] == "Conv2d: the first and the last layer keep float weights"
    assert told["linear"] == "Linear: the first and the last layer keep float weights"
    assert told["relu1"] == "ReLU: activations stay in float"


@pytest.mark.parametrize("recipe", ["w1a32", "w1a8"])
def test_unless_they_are_asked_for(
    recipe: str, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    worker, student = calibrated(tiny_network, tiny_spec, tiny_batches, recipe, first_and_last="quantized")
    assert all(is_weight_layer(student.get_submodule(name)) for name in ("stem", "conv", "linear"))
    assert not any("first and the last" in why for _, why in worker.describe(student).unquantized)


@pytest.mark.parametrize("recipe", ["w4a4", "w4a32"])
def test_they_may_stay_in_float_at_other_widths_too(
    recipe: str, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    _, student = calibrated(tiny_network, tiny_spec, tiny_batches, recipe, first_and_last="float")
    assert (type(student.stem), type(student.linear)) == (nn.Conv2d, nn.Linear)
    assert is_weight_layer(student.get_submodule("conv"))


def test_the_ends_are_found_in_the_order_of_the_calls(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier, self.middle, self.first = nn.Linear(4, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.middle(self.first(inputs)).mean((2, 3)))

    with silenced(NOTICES):
        assert end_layers(float_graph(Backwards().eval(), tiny_spec, BrevitasOptions(), merge_batch_norm=True)) == (
            "first",
            "classifier",
        )
        assert end_layers(
            float_graph(copy.deepcopy(tiny_network), tiny_spec, BrevitasOptions(), merge_batch_norm=True)
        ) == (
            "stem",
            "linear",
        )


def test_float_activations_are_those_of_the_network(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    _, student = calibrated(tiny_network, tiny_spec, tiny_batches, "w8a32", bias_correction="none")
    assert not any(isinstance(module, quant_nn.QuantIdentity | quant_nn.QuantReLU) for module in student.modules())
    expected, found = tiny_network(tiny_batches[0]), student(tiny_batches[0])
    assert (expected - found).abs().max() < 0.01 * expected.abs().max()


class TestTraining:
    def test_weights_cross_over_and_are_clipped(self, student: Any, tiny_batches: list[torch.Tensor]) -> None:
        signs = student.conv.quant_weight().value.sign()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.02)
        for _ in range(5):
            optimizer.zero_grad()
            student.train()(tiny_batches[0]).square().sum().backward()
            optimizer.step()
        values = student.conv.quant_weight().value
        assert not torch.equal(values.sign(), signs)
        bounds = values.abs().amax((1, 2, 3), keepdim=True)
        assert bool((student.conv.weight.abs() <= bounds + 1e-6).all())

    def test_their_size_is_learned(self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: Any) -> None:
        worker, student = calibrated(tiny_network, tiny_spec, tiny_batches)
        (scale,) = worker.scale_parameters(student)
        assert torch.allclose(scale.detach().flatten(), tiny_network.conv.weight.detach().abs().mean((1, 2, 3)))

    def test_or_follows_the_weights_unclipped(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        worker, student = calibrated(tiny_network, tiny_spec, tiny_batches, learned_weight_scales=False)
        layer: Any = student.conv
        assert type(layer.weight_quant.tensor_quant) is BinaryQuant
        assert worker.scale_parameters(student) == ()
        with torch.no_grad():
            layer.weight.mul_(2)
        before = layer.weight.detach().clone()
        found = layer.quant_weight().scale.detach().flatten()
        assert torch.allclose(found, before.abs().mean((1, 2, 3)))
        assert torch.equal(layer.weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["binary", "w1a8"])
def test_fine_tuned_without_data_from_end_to_end(
    recipe: str, tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path
) -> None:
    data = dfq_plugins.synthesize(
        tiny_network, tiny_spec, num_samples=64, options={"iterations": 5, "compile": "never"}
    )
    run = dfq_plugins.finetune(
        tiny_network,
        data,
        calibrator="brevitas",
        recipe=recipe,
        generator="adversarial",
        generator_options={"width": 8, "precision": "float32"},
        training=TRAINING,
        output=tmp_path,
    )
    assert min(point.held_out_loss for point in run.history[1:]) < run.history[0].held_out_loss
    assert run.training.batch_norm == "reestimated"
    assert [artifact.path.name for artifact in run.artifacts] == ["model.qonnx.onnx"]
    integers, whole = run.artifacts[0].checks
    assert integers.detail.startswith("100% of ")
    assert "top-1 agreement 100.0%" in whole.detail
    inputs = data.inputs(3)
    assert torch.allclose(
        torch.from_numpy(run_qonnx(run.artifacts[0].path, inputs.numpy())), run.model(inputs), atol=0.01
    )
