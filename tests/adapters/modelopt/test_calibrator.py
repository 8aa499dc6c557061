"""The ModelOpt calibrator: what it quantizes, what it leaves alone, and that it equals pytorch-quantization."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import dfq_plugins as dfq
from dfq_modelopt.calibrator import ModelOptCalibrator
from dfq_modelopt.framework import mto, mtq, quiet
from dfq_modelopt.insert import ALL_OFF
from dfq_modelopt.options import ModelOptOptions
from dfq_plugins.errors import ArtifactError, DataError, ModelError, UsageError
from dfq_plugins.host.registry import build_registry
from dfq_plugins.quantization.formats import format_in_words
from dfq_plugins.quantization.notices import Notice, silenced
from dfq_plugins.testing import CalibratorContract
from dfq_plugins.types import InputSpec, NetworkSpec, Recipe
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_pytorch_quantization.options import PytorchQuantizationOptions
from dfq_shared.tensorrt.range_search import search_weight_ranges
from dfq_shared.tensorrt.residual import ResidualQuantizer

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = InputSpec((3, 8, 8), num_classes=5)
SEQUENCE = InputSpec((6, 8), num_classes=5)


def quantize(model: nn.Module, spec: Any, inputs: Any, recipe: str = "w8a8", **options: Any) -> Any:
    options.setdefault("activations", "max")
    calibrator = ModelOptCalibrator(ModelOptOptions(**options))
    prepared = calibrator.prepare(model, spec, Recipe.parse(recipe), training=False)
    calibrator.calibrate(prepared, [inputs])
    return calibrator, calibrator.convert(prepared)


def draw(spec: InputSpec, samples: int = 16) -> torch.Tensor:
    return torch.randn(samples, *spec.shape, generator=torch.Generator().manual_seed(1))


def seeded(build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = build()
    return model.eval()


class Residual(nn.Module):
    """A residual addition, a transposed convolution, pooling, and a head with a name that ModelOpt's presets skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(6, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.stem(inputs)).relu()
        hidden = (self.conv(hidden) + hidden).relu()
        return self.output(self.pool(self.up(hidden)).flatten(1))


class SamePadding(nn.Conv2d):
    """A layer with a forward of its own."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(functional.pad(inputs, (1, 1, 1, 1)), self.weight, self.bias)


class Hidden(nn.Module):
    """A subclass with a forward of its own, a convolution as a function, and other padding than zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.same = SamePadding(3, 4, 3)
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.proj_out = nn.Linear(4, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.conv2d(self.same(inputs).relu(), self.kernel, padding=1).relu()
        return self.proj_out(self.reflect(input=hidden).relu().mean((2, 3)))


class Deciding(Hidden):
    """Python decides on a value of the input, which no graph can hold."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs * 2 if inputs.sum() > 1e9 else inputs)


class Encoder(nn.Module):
    """Torch's encoder layer, whose fused kernel passes its linear layers by."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.router = nn.Linear(16, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.router(self.encoder(self.embed(inputs)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(inputs)[0][:, -1])


class Tied(nn.Module):
    """Two layers with one weight, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.second(self.first(inputs).relu()).relu())).mean(1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 6), nn.Conv1d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.head((self.left(left) + self.right(right).mean(2)).relu())


class TestContract(CalibratorContract):
    @pytest.fixture
    def calibrator(self) -> Any:
        return ModelOptCalibrator(ModelOptOptions(activations="max"))


def test_the_plugin_is_found_and_its_options_are_checked() -> None:
    registry = build_registry()
    assert isinstance(registry.create("calibrator", "modelopt", {"trace": "false"}), ModelOptCalibrator)
    with pytest.raises(UsageError, match="percentile"):
        registry.create("calibrator", "modelopt", {"percentile": 0})


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("w8a8", {"activations": "mse"}),
        ("w4a4", {"activations": "mse"}),
        ("w4a8", {"activations": "percentile", "percentile": 99.0}),
        ("w6a6", {"activations": "max", "per_channel": False}),
        ("w4a4", {"activations": "mse", "input_bits": 4, "unsigned": False}),
        ("w2a3", {"activations": "max", "pooling": False, "residual_quantizer": False}),
    ],
)
def test_it_computes_what_pytorch_quantization_does(recipe: str, options: dict[str, Any]) -> None:
    model, inputs = seeded(Residual), draw(IMAGE)
    _, ours = quantize(model, IMAGE, inputs, recipe, **options)
    before = PytorchQuantizationCalibrator(PytorchQuantizationOptions(**options))
    theirs = before.prepare(model, IMAGE, Recipe.parse(recipe), training=False)
    before.calibrate(theirs, [inputs])
    with torch.no_grad():
        assert torch.equal(ours(inputs), before.convert(theirs)(inputs))


@pytest.mark.parametrize(
    "options", [{"weights": "mse"}, {"weights": "mse", "per_channel": False}, {"activations": "entropy"}]
)
def test_the_slow_searches_are_the_same(options: dict[str, Any]) -> None:
    model, spec = seeded(lambda: nn.ConvTranspose1d(2, 3, 3)), InputSpec((2, 9))
    inputs = draw(spec, 64)
    _, ours = quantize(model, spec, inputs, "w4a4", **options)
    before = PytorchQuantizationCalibrator(PytorchQuantizationOptions(**{"activations": "max", **options}))
    theirs: Any = before.prepare(model, spec, Recipe(4, 4), training=False)
    before.calibrate(theirs, [inputs])
    assert torch.allclose(ours.weight_quantizer.amax, theirs.weight_quantizer.amax, rtol=1 / 128)  # a bin
    assert torch.equal(ours.input_quantizer.amax, theirs.input_quantizer.amax)


def test_a_name_never_decides() -> None:
    layers = ("visual", "output", "output_layer", "router", "proj_out", "lm_head", "block_sparse_moe_gate")
    model = nn.Sequential()
    for name in layers:
        model.add_module(name, nn.Linear(8, 8))
    calibrator, quantized = quantize(model.eval(), InputSpec((8,)), torch.randn(16, 8))
    assert calibrator.describe(quantized).layers == layers


def test_nothing_is_printed_and_no_filter_changes(capsys: pytest.CaptureFixture[str]) -> None:
    filters = list(warnings.filters)
    quantize(seeded(Residual), IMAGE, draw(IMAGE))
    assert warnings.filters == filters
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_hidden_layers_are_quantized_in_the_graph(tmp_path: Path) -> None:
    model, inputs = seeded(Hidden), draw(IMAGE)
    calibrator, quantized = quantize(model, IMAGE, inputs)
    assert calibrator.describe(quantized).layers == ("same", "conv2d", "reflect", "proj_out")
    with torch.no_grad():
        assert (quantized(inputs) - model(inputs)).abs().max() < 0.05 * model(inputs).abs().max()
    assert calibrator.export(quantized, IMAGE, tmp_path)  # each weight has its input quantized


@pytest.mark.parametrize(("build", "trace"), [(Hidden, False), (Deciding, "auto")])
def test_untraced_hidden_layers_are_listed(build: type[nn.Module], trace: Any) -> None:
    calibrator, quantized = quantize(seeded(build), IMAGE, draw(IMAGE), trace=trace)
    coverage = calibrator.describe(quantized)
    assert coverage.layers == ("reflect", "proj_out")
    floating = dict(coverage.unquantized)
    assert "own forward" in floating["same"]
    assert "" in floating  # the network itself holds the weight of a function


class Token(nn.Module):
    """A parameter that no layer multiplies by."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 8))
        self.block = nn.Sequential(nn.Linear(8, 5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.block(inputs + self.token).mean(1)


def test_a_network_without_hidden_layers_keeps_its_modules() -> None:
    _, quantized = quantize(seeded(Token), SEQUENCE, draw(SEQUENCE))
    assert type(quantized) is Token
    assert isinstance(quantize(seeded(Token), SEQUENCE, draw(SEQUENCE), trace=True)[1], torch.fx.GraphModule)


def test_a_graph_can_be_asked_for() -> None:
    with pytest.raises(ModelError, match="Build that part"):
        quantize(seeded(Deciding), IMAGE, draw(IMAGE), trace=True)


def test_a_fused_kernel_hides_no_layer() -> None:
    calibrator, quantized = quantize(seeded(Encoder), SEQUENCE, draw(SEQUENCE))
    coverage = calibrator.describe(quantized)
    assert coverage.layers == ("embed", "encoder.linear1", "encoder.linear2", "router")
    assert {"encoder.self_attn", "encoder.self_attn.out_proj"} <= {name for name, _ in coverage.unquantized}


def test_recurrent_layers_stay_torchs_own() -> None:
    calibrator, quantized = quantize(seeded(Recurrent), SEQUENCE, draw(SEQUENCE))
    assert type(quantized.lstm) is nn.LSTM
    coverage = calibrator.describe(quantized)
    assert coverage.layers == ("head",)
    assert "lstm" in dict(coverage.unquantized)


def test_tied_weights_stay_tied() -> None:
    model = seeded(Tied)
    calibrator, quantized = quantize(model, SEQUENCE, draw(SEQUENCE))
    assert quantized.second.weight is quantized.first.weight
    assert calibrator.describe(quantized).layers == ("first", "second", "head")


def test_several_inputs(tmp_path: Path) -> None:
    spec = NetworkSpec({"left": InputSpec((8,)), "right": InputSpec((3, 9))})
    inputs = {"left": torch.randn(16, 8), "right": torch.randn(16, 3, 9)}
    calibrator, quantized = quantize(seeded(TwoInputs), spec, inputs)
    assert calibrator.describe(quantized).layers == ("left", "right", "head")
    assert calibrator.export(quantized, spec, tmp_path)


class Volumes(nn.Module):
    """ModelOpt's Conv3d has a forward of its own, which looks at its quantizers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.up = nn.ConvTranspose3d(4, 4, 2, stride=2, groups=2)
        self.pool = nn.AvgPool3d(2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.pool(self.up(self.conv(inputs).relu())).mean((2, 3, 4))


def test_volumes_are_exported(tmp_path: Path) -> None:
    spec = InputSpec((1, 4, 4, 4), num_classes=4)
    calibrator, quantized = quantize(seeded(Volumes), spec, draw(spec), "w6a6")
    assert calibrator.describe(quantized).layers == ("conv", "up", "pool")
    assert calibrator.export(quantized, spec, tmp_path)


def test_a_single_layer_is_a_model() -> None:
    calibrator, quantized = quantize(nn.Linear(8, 3).eval(), InputSpec((8,)), torch.randn(16, 8))
    assert calibrator.describe(quantized).layers == ("",)


def test_the_file_comes_back(tmp_path: Path) -> None:
    model, inputs = seeded(Residual), draw(IMAGE)
    run = dfq.run_quantization(model, inputs, calibrator="modelopt", recipe="w4a4", spec=IMAGE, output=tmp_path)
    assert [artifact.path.name for artifact in run.artifacts] == ["model.modelopt.onnx"]
    checks = {check.name: check.detail for check in run.artifacts[0].checks}
    assert "1 of 1 residual additions" in checks["TensorRT rules"]
    with torch.no_grad():
        assert torch.allclose(dfq.load_quantized(tmp_path)(inputs), run.model(inputs), atol=1e-5)


def test_modelopts_own_state_is_restored_bit_by_bit(tmp_path: Path) -> None:
    """The snippet of the how-to page, on a network with BatchNorm and pooling."""
    model, inputs = seeded(Residual), draw(IMAGE)
    quantized = dfq.quantize(
        model, inputs, calibrator="modelopt", recipe="w4a8", spec=IMAGE, options={"residual_quantizer": False}
    )
    with quiet(), silenced([Notice("Could not identify the device for TensorQuantizer states of pool")]):
        mto.save(quantized, tmp_path / "quantized.pth")
        restored = mto.restore(seeded(Residual), tmp_path / "quantized.pth")
    with torch.no_grad():
        assert torch.equal(restored(inputs), quantized(inputs))


def test_ranges_are_learned(tmp_path: Path) -> None:
    calibrator = ModelOptCalibrator(
        ModelOptOptions(activations="percentile", percentile=90, learned_ranges=True, training_weights="follow")
    )
    inputs = draw(IMAGE)
    student: Any = calibrator.prepare(seeded(Residual), IMAGE, Recipe(4, 4), training=True)
    calibrator.calibrate(student, [inputs])
    limits = calibrator.scale_parameters(student)
    calibrated = float(student.conv.input_quantizer.amax)
    assert len(limits) == 5  # one a layer and the pooling; none for the shortcut
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    student(inputs).square().sum().backward()
    optimizer.step()
    trained = student(inputs).detach()
    converted: Any = calibrator.convert(student)
    assert float(converted.conv.input_quantizer.amax) != calibrated
    assert torch.allclose(converted(inputs), trained, atol=1e-5)
    assert not any("clip" in name for name, _ in converted.named_parameters())
    assert calibrator.export(converted, IMAGE, tmp_path)


def test_fp8_is_modelopts_own_preset(tmp_path: Path) -> None:
    model, inputs = seeded(Residual), draw(IMAGE)
    calibrator, quantized = quantize(model, IMAGE, inputs, fp8=True, activations="mse", residual_quantizer=False)
    weight = calibrator.describe(quantized).format_of("conv", "weight")
    assert format_in_words(weight) == "float8 (e4m3) per channel, symmetric"
    with torch.no_grad():
        assert (quantized(inputs) - model(inputs)).abs().max() < 0.1 * model(inputs).abs().max()
    conv = quantized.conv
    seen = torch.randn(2, 8, 8, 8)
    expected = (seen * (448 / conv.input_quantizer.amax)).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.allclose(conv.input_quantizer(seen), expected * conv.input_quantizer.amax / 448)
    with pytest.raises(ArtifactError, match="Only integers"):
        calibrator.export(quantized, IMAGE, tmp_path)
    with pytest.raises(UsageError, match="w8a8"):
        quantize(model, IMAGE, inputs, "w4a8", fp8=True)


def test_fp8_trains_and_takes_shortcuts() -> None:
    calibrator = ModelOptCalibrator(ModelOptOptions(fp8=True, learned_ranges=True))
    student: Any = calibrator.prepare(seeded(Residual), IMAGE, Recipe(8, 8), training=True)
    calibrator.calibrate(student, [draw(IMAGE)])
    student(draw(IMAGE)).square().sum().backward()
    assert all(limit.grad is not None for limit in calibrator.scale_parameters(student))
    assert all(form.format.exponent_bits for form in calibrator.describe(calibrator.convert(student)).quantized)


def test_a_model_that_modelopt_converted_is_refused() -> None:
    model = seeded(Residual)
    with quiet():
        mtq.quantize(model, ALL_OFF)
    with pytest.raises(ModelError, match="already converted"):
        quantize(model, IMAGE, draw(IMAGE))


def test_bad_inputs() -> None:
    model = seeded(Residual)
    with pytest.raises(UsageError, match="modelopt supports 2 to 8 bits"):
        quantize(model, IMAGE, draw(IMAGE), "w1a8")
    with pytest.raises(DataError):
        quantize(model, IMAGE, draw(IMAGE) * float("nan"))
    with pytest.raises(ModelError, match="finds none"):
        quantize(nn.ReLU(), IMAGE, draw(IMAGE))


def test_the_shortcut_is_quantized_as_nvidia_recommends() -> None:
    _, quantized = quantize(seeded(Residual), IMAGE, draw(IMAGE), "w4a4")
    (shortcut,) = (module for module in quantized.modules() if isinstance(module, ResidualQuantizer))
    assert shortcut.input_quantizer.num_bits == 8


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_weight_ranges_are_the_best_of_all(axis: int | None) -> None:
    """ModelOpt's own search returns its first candidate, half of the largest weight."""
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = search_weight_ranges(weight, axis=axis, num_bits=4, bins=256)
    highest = weight.abs().amax([index for index in range(3) if index != axis], keepdim=True)

    def error(ranges: torch.Tensor) -> torch.Tensor:
        step = ranges / 7
        lost = ((weight / step).round().clamp(-7, 7) * step - weight).square()
        return lost.sum([index for index in range(3) if index != axis])

    for share in torch.linspace(0.5, 1, 20):
        assert (error(found) <= error(highest * share) * 1.05).all()
