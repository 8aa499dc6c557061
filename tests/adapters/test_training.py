"""Fine-tuning inside each framework: what is trained, what stays, and that the native result still exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.intrinsic.quantized as nniq
from torch import nn

from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_brevitas.input_range import input_quantizers, known_input_scalings
from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.distillation.state import capture
from dfq_plugins.errors import UsageError
from dfq_plugins.quantization.finetune import FinetuneRun, finetune
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.types import InputSpec, Recipe
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_pytorch_quantization.framework import quant_nn
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from dfq_pytorch_quantization.options import PytorchQuantizationOptions
from dfq_shared.tensorrt.quantizers import quantized_modules
from dfq_torch_ao.calibrator import TorchAoCalibrator
from dfq_torch_ao.options import TorchAoOptions
from dfq_torch_ao.training import activation_quantizers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.types import ProgressEvent

W8A8, W4A4 = Recipe(8, 8), Recipe(4, 4)
QUICK = {"steps": 10, "batch_size": 16, "num_evaluations": 2, "teacher_precision": "float32"}
FRAMEWORKS = {
    "torch-ao": {"model.torchscript.pt"},
    "pytorch-quantization": {"model_qdq.onnx"},
    "brevitas": {"model.qonnx.onnx", "model.qcdq.onnx"},
}


@pytest.fixture
def inputs(tiny_batches: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tiny_batches)


@pytest.fixture
def tune(tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor) -> Callable[..., FinetuneRun]:
    def tuned(calibrator: str, recipe: str = "w4a4", **settings: Any) -> FinetuneRun:
        settings["training"] = {**QUICK, **settings.pop("training", {})}
        return finetune(tiny_network, inputs, calibrator=calibrator, recipe=recipe, spec=tiny_spec, **settings)

    return tuned


def one_step(student: nn.Module, inputs: torch.Tensor, rate: float = 0.02) -> None:
    """Train everything that takes gradients by one step of plain descent on a made-up loss."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    student(inputs).square().sum().backward()
    with torch.no_grad():
        for parameter in trained:
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad.sign() * parameter.abs().mean())
                parameter.grad = None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_result_is_native_exported_and_checked(
    framework: str, recipe: str, tune: Callable[..., FinetuneRun], tmp_path: Path
) -> None:
    run = tune(framework, recipe, output=tmp_path)
    assert {artifact.path.name for artifact in run.artifacts} == FRAMEWORKS[framework]
    assert all(artifact.checks for artifact in run.artifacts)
    weights = {tensor.name: tensor.format.bits for tensor in run.coverage.quantized if tensor.role == "weight"}
    assert weights["stem"] == weights["linear"] == int(recipe[1])
    if recipe == "w8a8":
        assert run.agreement >= 0.8
    kinds = {"torch-ao": nniq.ConvReLU2d, "pytorch-quantization": quant_nn.QuantConv2d}
    if framework in kinds:
        assert type(run.model.stem) is kinds[framework]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_resumes_exactly(framework: str, tune: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"learned_ranges": True} if framework == "pytorch-quantization" else {}
    whole = tune(framework, options=settings)

    def interrupt(event: ProgressEvent) -> None:
        if event.stage == "finetune" and event.completed == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(framework, options=settings, work=tmp_path, listeners=[interrupt])
    resumed = tune(framework, options=settings, work=tmp_path)
    assert [point.held_out_loss for point in resumed.history] == [point.held_out_loss for point in whole.history]
    sample = torch.rand(8, 3, 8, 8)
    assert torch.equal(resumed.model(sample), whole.model(sample))


class TestBrevitas:
    def prepared(
        self, network: nn.Module, spec: InputSpec, inputs: torch.Tensor, **options: Any
    ) -> tuple[BrevitasCalibrator, Any]:
        worker = BrevitasCalibrator(BrevitasOptions(**options))
        student = worker.prepare(network, spec, W4A4, training=True)
        worker.calibrate(student, [inputs])
        return worker, student

    def test_scales_are_learned_but_the_known_input_range(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs)
        scales = worker.scale_parameters(student)
        names = {id(parameter): name for name, parameter in student.named_parameters()}
        assert {names[id(scale)].split(".")[0] for scale in scales} >= {"stem", "conv", "linear", "relu1", "relu2"}
        (known,) = known_input_scalings(student, tiny_spec)
        assert not any(scale is known.value for scale in scales)
        before = capture(student)
        one_step(student.train(), inputs)
        moved = {name for name, value in capture(student).items() if not torch.equal(value, before[name])}
        assert {names[id(scale)] for scale in scales} <= moved
        assert names[id(known.value)] not in moved
        assert {"stem.weight", "stem.bias", "linear.weight"} <= moved

    def test_an_unknown_input_range_is_learned_too(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs, known_input_range=False)
        (known,) = known_input_scalings(student, tiny_spec)
        assert any(scale is known.value for scale in worker.scale_parameters(student))

    @pytest.mark.slow
    def test_weight_scales_may_follow_the_weights(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor, tmp_path: Path
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs, learned_weight_scales=False)
        with torch.no_grad():
            student.stem.weight.mul_(2)
        scale = student.stem.quant_weight().scale.flatten()
        assert torch.allclose(scale, student.stem.weight.abs().amax((1, 2, 3)) / 7)
        assert len(worker.export(worker.convert(student), tiny_spec, tmp_path)) == 2

    def test_the_statistics_of_activations_are_not_collected_any_more(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        _, student = self.prepared(tiny_network, tiny_spec, inputs)
        before = capture(student)
        student.train()(10 * inputs)
        assert all(torch.equal(value, before[name]) for name, value in capture(student).items())

    def test_a_converted_model_takes_no_gradients(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs)
        assert not any(parameter.requires_grad for parameter in worker.convert(student.train()).parameters())
        assert len(list(input_quantizers(student, next(iter(student.graph.nodes))))) == 1


class TestTorchAo:
    def prepared(
        self, network: nn.Module, spec: InputSpec, inputs: torch.Tensor, recipe: Recipe = W8A8, **options: Any
    ) -> tuple[TorchAoCalibrator, Any]:
        worker = TorchAoCalibrator(TorchAoOptions(**options))
        student = worker.prepare(network, spec, recipe, training=True)
        worker.calibrate(student, inputs.split(16))
        return worker, student

    def test_batch_norm_stays_until_conversion(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs)
        assert type(student.stem) is nniqat.ConvBnReLU2d
        assert all(parameter.requires_grad for parameter in student.parameters())
        assert not any("bn" in name for name, _ in worker.convert(student).named_modules())

    @pytest.mark.parametrize("recipe", [W8A8, W4A4], ids=str)
    def test_before_any_step_it_computes_what_calibration_alone_gives(
        self, recipe: Recipe, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs, recipe)
        plain = TorchAoCalibrator()
        calibrated = plain.prepare(tiny_network, tiny_spec, recipe)
        plain.calibrate(calibrated, inputs.split(16))
        expected = plain.convert(calibrated)(inputs)
        step = expected.abs().max() / 2 ** (recipe.activation_bits - 1)
        assert (worker.convert(student)(inputs) - expected).abs().max() <= step
        # The fake quantizers round what the int8 kernel of the mean does not.
        assert (student(inputs) - expected).abs().mean() <= 2 * step

    def test_the_int8_model_computes_what_was_trained(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs)
        one_step(student, inputs)
        trained, untrained = student.eval()(inputs).detach(), tiny_network(inputs).detach()
        difference = (worker.convert(student)(inputs) - trained).abs().mean()
        assert difference < 0.02 * trained.abs().max()
        assert difference < 0.2 * (trained - untrained).abs().mean()

    def test_calibrated_ranges_stay_and_weights_are_followed(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        _, student = self.prepared(tiny_network, tiny_spec, inputs)
        ranges = [quantizer.scale.clone() for quantizer in activation_quantizers(student)]
        student(inputs)  # the ranges of weights are taken in a forward pass
        weights = student.linear.weight_fake_quant.scale.clone()
        with torch.no_grad():
            student.linear.weight.mul_(0.5)
        student.train()(5 * inputs)
        assert all(torch.equal(q.scale, r) for q, r in zip(activation_quantizers(student), ranges, strict=True))
        assert torch.allclose(student.linear.weight_fake_quant.scale, 0.5 * weights)

    def test_moving_averages_follow_until_they_are_frozen(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs, training_ranges="moving-average")
        known, *others = activation_quantizers(student)

        def scales() -> list[float]:
            return [float(quantizer.scale) for quantizer in others[:-1]]  # the last is the widened output

        before = [float(known.scale), *scales()]
        student.train()(5 * inputs)
        assert scales() > before[1:]
        assert float(known.scale) == before[0]
        worker.freeze_ranges(student)
        frozen = scales()
        student(10 * inputs)
        assert scales() == frozen

    def test_the_known_input_range_and_the_room_of_the_output_stay(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        _, student = self.prepared(tiny_network, tiny_spec, inputs, engine="onednn", reduce_range=False)
        first, *_, last = activation_quantizers(student)
        assert float(first.scale) == pytest.approx(4.0 / 255, rel=1e-3)
        outputs = tiny_network(inputs).detach()
        spread = outputs.max().clamp(min=0) - outputs.min().clamp(max=0)
        assert float(last.scale) * 255 == pytest.approx(2 * float(spread), rel=0.1)

    def test_uncalibrated_is_refused(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        worker = TorchAoCalibrator()
        with pytest.raises(UsageError, match="Observers must see data before conversion"):
            worker.convert(worker.prepare(tiny_network, tiny_spec, W8A8, training=True))


class TestPytorchQuantization:
    def prepared(
        self, network: nn.Module, spec: InputSpec, inputs: torch.Tensor, **options: Any
    ) -> tuple[PytorchQuantizationCalibrator, Any]:
        worker = PytorchQuantizationCalibrator(PytorchQuantizationOptions(**options))
        student = worker.prepare(network, spec, W4A4, training=True)
        worker.calibrate(student, inputs.split(16))
        return worker, student

    def test_fixed_ranges_stay(self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs)
        assert worker.scale_parameters(student) == ()
        before = {name: value for name, value in capture(student).items() if name.endswith("_amax")}
        one_step(student.train(), inputs)
        worker.convert(student)
        after = capture(student)
        assert len(before) == 7
        assert all(torch.equal(value, after[name]) for name, value in before.items())

    def test_learned_ranges_end_as_fixed_ones(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor, tmp_path: Path
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs, learned_ranges=True, activations="percentile",
                                        percentile=90.0)  # fmt: skip
        known = float(student.stem.input_quantizer.amax)
        calibrated = float(student.conv.input_quantizer.amax)
        # The upper ends of two ranges: the input's is known, and the shortcut's stays as calibrated.
        assert len(worker.scale_parameters(student)) == 2
        one_step(student.train(), inputs)
        trained = student.eval()(inputs)
        converted = worker.convert(student)
        assert float(converted.stem.input_quantizer.amax) == known
        assert float(converted.conv.input_quantizer.amax) != calibrated
        assert torch.allclose(converted(inputs), trained, atol=1e-5)
        assert not any("clip" in name for name, _ in converted.named_parameters())
        assert worker.convert(converted) is converted  # once more changes nothing
        assert worker.export(converted, tiny_spec, tmp_path)

    def test_weight_ranges_may_follow(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor, tmp_path: Path
    ) -> None:
        worker, student = self.prepared(tiny_network, tiny_spec, inputs, training_weights="follow")
        with torch.no_grad():
            student.conv.weight.mul_(2)
        trained = student(inputs)
        converted = worker.convert(student)
        amax = converted.conv.weight_quantizer.amax.flatten()
        assert torch.allclose(amax, student.conv.weight.abs().amax((1, 2, 3)))
        assert torch.equal(converted(inputs), trained)
        assert worker.export(converted, tiny_spec, tmp_path)

    def test_everything_takes_gradients(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
    ) -> None:
        _, student = self.prepared(tiny_network, tiny_spec, inputs)
        with silenced(NOTICES, logger=LOGGER):
            student(inputs).square().sum().backward()
        assert len(quantized_modules(student)) == 4
        assert all(parameter.grad is not None for parameter in student.parameters())
