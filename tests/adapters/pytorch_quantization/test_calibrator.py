"""The pytorch-quantization calibrator: which modules it swaps, which ranges it chooses, what it leaves untouched."""

from __future__ import annotations

import copy
import doctest
import importlib
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.host.registry import build_registry
from dfq_plugins.quantization.formats import format_in_words
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.types import InputSpec, NumberFormat, Recipe
from dfq_pytorch_quantization.backend import GuardedHistogram
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_pytorch_quantization.framework import calib, quant_modules, quant_nn, without_cuda
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from dfq_pytorch_quantization.options import PytorchQuantizationOptions
from dfq_shared.tensorrt.observers import MAX_BINS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ALL_METHODS = ("max", "entropy", "percentile", "mse")


def quantize(
    model: nn.Module, spec: InputSpec, batches: Iterable[torch.Tensor], recipe: str = "w8a8", **options: Any
) -> Any:
    options.setdefault("activations", "max")  # the quickest
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(**options))
    prepared = calibrator.prepare(model, spec, Recipe.parse(recipe), training=False)
    calibrator.calibrate(prepared, batches)
    return calibrator.convert(prepared)


def unspecified(spec: InputSpec) -> InputSpec:
    """The same input with nothing known of its values."""
    return InputSpec(spec.shape, num_classes=spec.num_classes)


def count_levels(quantizer: Any, values: torch.Tensor) -> int:
    with torch.no_grad():
        return len(torch.unique(quantizer(values)))


@pytest.fixture
def torch_nn() -> dict[str, object]:
    return {name: getattr(nn, name) for name in dir(nn)}


def test_the_plugin_is_found_and_its_options_are_checked() -> None:
    registry = build_registry()
    calibrator = registry.create("calibrator", "pytorch-quantization", {"activations": "entropy", "unsigned": "true"})
    assert isinstance(calibrator, PytorchQuantizationCalibrator)
    with pytest.raises(UsageError, match="percentile"):
        registry.create("calibrator", "pytorch-quantization", {"percentile": 0})


def test_doctests() -> None:
    results = doctest.testmod(importlib.import_module("dfq_pytorch_quantization.framework"))
    assert results.attempted
    assert not results.failed


def test_layers_become_the_frameworks_modules(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    quantized = quantize(tiny_network, tiny_spec, tiny_batches)
    kinds = {name: type(quantized.get_submodule(name)) for name in ("stem", "conv", "linear")}
    assert kinds == {"stem": quant_nn.QuantConv2d, "conv": quant_nn.QuantConv2d, "linear": quant_nn.QuantLinear}
    inputs = torch.cat(tiny_batches)
    with torch.no_grad():
        expected, found = tiny_network(inputs), quantized(inputs)
    assert not torch.equal(expected, found)
    assert (expected - found).abs().max() < 0.1 * expected.std()


def test_a_prepared_model_computes_in_float(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    prepared = PytorchQuantizationCalibrator().prepare(tiny_network, tiny_spec, Recipe(4, 4), training=False)
    inputs = torch.randn(4, 3, 8, 8)
    assert torch.equal(prepared(inputs), tiny_network(inputs))


def test_the_caller_keeps_model_random_state_and_torch_nn(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], torch_nn: dict[str, object]
) -> None:
    before, mode = copy.deepcopy(tiny_network.state_dict()), tiny_network.train().training
    rng, handlers = torch.get_rng_state(), list(logging.root.handlers)
    quantize(tiny_network, tiny_spec, tiny_batches, "w4a4")
    with pytest.raises(ValueError, match="stop"):
        quantize(tiny_network, tiny_spec, failing_after(tiny_batches))
    assert torch_nn == {name: getattr(nn, name) for name in dir(nn)}
    assert tiny_network.training is mode
    assert all(torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items())
    assert not any(isinstance(module, quant_nn.TensorQuantizer) for module in tiny_network.modules())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()
    assert logging.root.handlers == handlers
    assert quant_nn.TensorQuantizer.use_fb_fake_quant is False


def failing_after(batches: list[torch.Tensor]) -> Iterable[torch.Tensor]:
    yield batches[0]
    raise ValueError("stop")


def test_calibration_can_be_repeated_after_it_was_cut_short(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(activations="max"))
    prepared: Any = calibrator.prepare(tiny_network, tiny_spec, Recipe(8, 8), training=False)
    with pytest.raises(ValueError, match="stop"):
        calibrator.calibrate(prepared, failing_after([1000 * tiny_batches[0]]))
    calibrator.calibrate(prepared, tiny_batches)
    expected = quantize(tiny_network, tiny_spec, tiny_batches)
    assert torch.equal(prepared.conv.input_quantizer.amax, expected.conv.input_quantizer.amax)


def test_a_second_calibration_decides_the_sign_anew() -> None:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(input_bits=4))
    prepared: Any = calibrator.prepare(nn.Sequential(nn.Linear(4, 2)), InputSpec((4,)), Recipe(4, 4), training=False)
    signs = []
    for batch in (torch.rand(8, 4), torch.rand(8, 4), torch.randn(8, 4)):
        calibrator.calibrate(prepared, [batch])
        signs.append(prepared[0].input_quantizer.unsigned)
    assert signs == [True, True, False]


def test_the_framework_may_be_patching_torch_nn_meanwhile(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    quant_modules.initialize()
    try:
        quantized = quantize(tiny_network, tiny_spec, tiny_batches)
        assert nn.Conv2d is quant_nn.QuantConv2d
    finally:
        quant_modules.deactivate()
    assert isinstance(quantized.stem, quant_nn.QuantConv2d)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("max", {}),
        ("percentile", {"method": "percentile", "percentile": 99.0}),
        ("entropy", {"method": "entropy", "stride": 16}),
        ("mse", {"method": "mse", "stride": 4}),
    ],
)
def test_ranges_are_those_of_the_frameworks_own_calibrators(
    tiny_network: Any,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    recipe: str,
    method: str,
    arguments: dict[str, Any],
) -> None:
    quantized = quantize(tiny_network, tiny_spec, tiny_batches, recipe, activations=method, percentile=99.0)
    bits, unsigned = Recipe.parse(recipe).activation_bits, recipe == "w4a4"
    kind = calib.MaxCalibrator if method == "max" else calib.HistogramCalibrator
    reference = kind(bits, None, unsigned)
    with torch.no_grad(), without_cuda():
        for batch in tiny_batches:
            reference.collect(tiny_network.relu1(tiny_network.norm1(tiny_network.stem(batch))))
        expected = reference.compute_amax(**arguments)
    assert quantized.conv.input_quantizer.amax == expected


def test_a_lower_percentile_gives_a_narrower_range(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    wide, narrow = (
        quantize(tiny_network, tiny_spec, tiny_batches, activations="percentile", percentile=p) for p in (99.9, 90.0)
    )
    assert narrow.conv.input_quantizer.amax < wide.conv.input_quantizer.amax


def test_mse_ranges_lose_less_than_the_whole_range(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    inputs = torch.cat(tiny_batches)
    with torch.no_grad():
        hidden = tiny_network.relu1(tiny_network.norm1(tiny_network.stem(inputs)))  # type: ignore[operator]
        errors = {
            method: (
                quantize(tiny_network, tiny_spec, tiny_batches, "w8a4", activations=method).conv.input_quantizer(hidden)
                - hidden
            )
            .square()
            .mean()
            for method in ("max", "mse")
        }
    assert errors["mse"] < errors["max"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["max", "mse"])
def test_weights_have_a_range_for_each_output_channel(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], weights: str
) -> None:
    quantized = quantize(tiny_network, tiny_spec, tiny_batches, "w4a8", weights=weights)
    assert quantized.conv.weight_quantizer.amax.shape == (8, 1, 1, 1)
    assert quantized.linear.weight_quantizer.amax.shape == (4, 1)
    highest = quantized.conv.weight.detach().abs().amax((1, 2, 3), keepdim=True)
    amax = quantized.conv.weight_quantizer.amax
    assert torch.equal(amax, highest) if weights == "max" else bool((amax < highest).any() and (amax <= highest).all())


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["max", "mse"])
def test_weights_can_have_one_range(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], weights: str
) -> None:
    quantized = quantize(tiny_network, tiny_spec, tiny_batches, weights=weights, per_channel=False)
    assert quantized.conv.weight_quantizer.amax.shape == ()
    assert quantized.conv.weight_quantizer.amax <= quantized.conv.weight.detach().abs().max()


def test_transposed_convolutions_have_their_channels_on_the_second_axis() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.Flatten())
    spec = InputSpec((3, 4, 4))
    for weights in ("max", "mse"):
        quantized = quantize(model, spec, [torch.randn(4, 3, 4, 4)], weights=weights)
        assert quantized[0].weight_quantizer.amax.shape == (1, 5, 1, 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_number_of_levels_is_that_of_the_recipe(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], bits: int
) -> None:
    quantized = quantize(tiny_network, tiny_spec, tiny_batches, f"w{bits}a{bits}", input_bits=bits)
    everything = torch.linspace(-10, 10, 100_001)
    assert count_levels(quantized.stem.input_quantizer, everything) == 2**bits
    assert count_levels(quantized.conv.input_quantizer, everything) == 2**bits
    weight = quantized.conv.weight.detach()
    per_channel = quantized.conv.weight_quantizer(weight)
    assert max(len(torch.unique(channel)) for channel in per_channel) <= 2**bits
    assert len(torch.unique(per_channel)) > 2**bits or bits == 8


@pytest.mark.parametrize(
    ("unsigned", "recipe", "expected"),
    [("auto", "w8a8", False), ("auto", "w4a4", True), (True, "w8a4", True), (False, "w4a4", False)],
)
def test_inputs_after_relu_are_unsigned_where_the_option_says(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    unsigned: Any,
    recipe: str,
    expected: bool,
) -> None:
    quantized = quantize(tiny_network, tiny_spec, tiny_batches, recipe, unsigned=unsigned)
    assert quantized.conv.input_quantizer.unsigned is expected
    assert quantized.stem.input_quantizer.unsigned is False


def test_unsigned_quantizers_cut_off_what_calibration_never_saw(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    quantizer = quantize(tiny_network, tiny_spec, tiny_batches, "w4a4").conv.input_quantizer
    assert quantizer(torch.tensor([-3.0, 0.0])).tolist() == [0.0, 0.0]


def test_the_input_range_is_that_of_the_spec_and_not_of_the_data(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    wide = [3 * batch for batch in tiny_batches]
    assert quantize(tiny_network, tiny_spec, wide).stem.input_quantizer.amax == 2.0
    assert quantize(tiny_network, unspecified(tiny_spec), wide).stem.input_quantizer.amax == 6.0


def test_mse_cuts_the_known_range_off_below_8_bits(tiny_network: nn.Module) -> None:
    spec = InputSpec((3, 8, 8), (0.5,) * 3, (0.2,) * 3, (0.0, 1.0))  # from -2.5 to 2.5
    w8, w4 = (
        _prepare(tiny_network, spec, input_bits=bits).get_submodule("stem.input_quantizer").amax for bits in (8, 4)
    )
    assert 1.5 < w4 < 2.4 < w8 <= 2.5


@pytest.mark.parametrize("known", [True, False])
def test_the_network_input_has_a_width_of_its_own(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], known: bool
) -> None:
    spec = tiny_spec if known else unspecified(tiny_spec)
    quantized = quantize(tiny_network, spec, tiny_batches, "w4a4")
    assert (quantized.stem.input_quantizer.num_bits, quantized.conv.input_quantizer.num_bits) == (8, 4)
    assert count_levels(quantized.stem.input_quantizer, torch.linspace(-10, 10, 100_001)) == 256


class Padded(nn.Module):
    """The input padded, normalized and rectified on its way to three convolutions, and to a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.padded, self.rectified, self.scaled = (nn.Conv2d(3, 4, 3) for _ in range(3))
        self.pool = nn.AvgPool2d(2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        padded = self.padded(nn.functional.pad(inputs, (0, 1, 0, 1)))[..., :-1, :-1]
        others = self.rectified(inputs.relu()) + self.scaled(input=2 * inputs)
        return (padded + others).mean((2, 3)) + self.pool(inputs).mean((1, 2, 3), keepdim=False)[:, None]


def test_the_network_input_is_recognised_through_padding_and_relu() -> None:
    spec = InputSpec((3, 8, 8), value_range=(-3.0, 2.0))
    quantized = quantize(Padded().eval(), spec, [torch.rand(4, 3, 8, 8)])
    amax = {name: quantized.get_submodule(name).input_quantizer.amax.item() for name in ("padded", "rectified", "pool")}
    assert amax == {"padded": 3.0, "rectified": 2.0, "pool": 3.0}
    assert quantized.scaled.input_quantizer.amax < 2.0


def test_a_non_negative_network_input_is_unsigned_below_8_bits() -> None:
    spec = InputSpec((3, 8, 8), value_range=(0.0, 1.0))
    quantizer = quantize(Padded().eval(), spec, [torch.rand(4, 3, 8, 8)], "w4a4", input_bits=4).padded.input_quantizer
    assert quantizer.unsigned
    assert quantizer.amax == 1.0


class Reused(nn.Module):
    """One convolution at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs) * 5).mean((2, 3))


def test_a_shared_module_stays_shared_and_its_range_covers_both_inputs() -> None:
    spec = InputSpec((3, 8, 8), value_range=(0.0, 1.0))
    quantized = quantize(Reused().eval(), spec, [torch.rand(4, 3, 8, 8)])
    assert quantized.first is quantized.second
    assert isinstance(quantized.first, quant_nn.QuantConv2d)
    assert quantized.first.input_quantizer.amax > 1.0


def test_a_model_may_be_a_single_layer() -> None:
    quantized = quantize(nn.Linear(4, 2), InputSpec((4,)), [torch.randn(8, 4)])
    assert isinstance(quantized, quant_nn.QuantLinear)


def test_settings_and_hooks_of_a_layer_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 1), stride=2, padding="valid", dilation=1, groups=2, bias=False))
    model[0].register_forward_hook(lambda _module, _inputs, output: output + 100)
    inputs = torch.randn(2, 4, 9, 9)
    quantized = quantize(model, InputSpec((4, 9, 9)), [inputs])
    with torch.no_grad():
        assert torch.allclose(quantized(inputs), model(inputs), atol=0.05)


class WithOwnForward(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (torch's name)
        return super().forward(input) * 2


class WithOwnConstructor(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 3, 1)


class Mixed(nn.Module):
    """Layers that can and that cannot be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = WithOwnConstructor()
        self.derived = WithOwnForward(3, 3, 1)
        self.reflecting = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.recurrent = nn.LSTM(3, 3, batch_first=True)
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.pool(self.norm(self.reflecting(self.derived(self.plain(inputs))))).flatten(2)
        return nn.functional.linear(self.recurrent(hidden.transpose(1, 2))[0][:, 0], self.unused.weight)


def test_what_cannot_be_quantized_stays_in_float_and_is_named() -> None:
    calibrator = PytorchQuantizationCalibrator()
    prepared = calibrator.prepare(Mixed().eval(), InputSpec((3, 8, 8)), Recipe(8, 8), training=False)
    calibrator.calibrate(prepared, [torch.randn(4, 3, 8, 8)])
    coverage = calibrator.describe(calibrator.convert(prepared))
    assert [(tensor.name, tensor.kind, tensor.role) for tensor in coverage.quantized] == [
        ("plain", "QuantConv2d", "weight"),
        ("plain", "QuantConv2d", "input"),
        ("pool", "QuantAdaptiveAvgPool2d", "input"),
    ]
    reasons = dict(coverage.unquantized)
    assert "subclass that defines methods" in reasons["derived"]
    assert "padding_mode='reflect'" in reasons["reflecting"]
    assert "TensorRT folds" in reasons["norm"]
    assert "no quantized class" in reasons["recurrent"]
    assert "never ran" in reasons["unused"]
    assert "functional pooling" in reasons["(functions)"]


def test_pooling_can_be_left_in_float() -> None:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(pooling=False))
    prepared = calibrator.prepare(Mixed().eval(), InputSpec((3, 8, 8)), Recipe(8, 8), training=False)
    assert isinstance(prepared.get_submodule("pool"), nn.AdaptiveAvgPool2d)
    assert "pooling=False" in dict(calibrator.describe(prepared).unquantized)["pool"]


def test_coverage_says_the_number_formats(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(activations="max"))
    prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(3, 4), training=False)
    uncalibrated = calibrator.describe(prepared).format_of("conv", "input")
    assert uncalibrated == NumberFormat(4, signed=True, symmetric=True, per_channel=False, stored_bits=8)
    calibrator.calibrate(prepared, tiny_batches)
    coverage = calibrator.describe(prepared)
    words = [format_in_words(tensor.format, with_range=True) for tensor in coverage.quantized[:4]]
    assert words[:2] == ["int3 in 8 bits per channel, symmetric", "int8 per tensor, symmetric, -2 to 2"]
    assert words[3].startswith("uint4 in 8 bits per tensor, symmetric, 0 to ")


@pytest.mark.slow
def test_a_layer_that_sees_zeros_alone_and_empty_channels_are_calibrated() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[2].weight[1].zero_()
    for method in ALL_METHODS:
        quantized = quantize(model, InputSpec((3, 4, 4)), [torch.zeros(2, 3, 4, 4), torch.rand(2, 3, 4, 4)], "w4a4",
                             activations=method, weights="mse")  # fmt: skip
        with torch.no_grad():
            assert torch.allclose(quantized(torch.rand(2, 3, 4, 4)), model(torch.rand(2, 3, 4, 4)), atol=1e-5)
        assert quantized[2].input_quantizer.amax > 0
        assert not quantized[2].weight[1].any()


def test_a_histogram_stays_small_when_the_first_batch_was_tiny() -> None:
    observer = GuardedHistogram(8, None, unsigned=False)
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(1000, generator=rng)
    for scale in (1e-4, 1.0, 1e3):
        observer.collect(values * scale)
        assert observer._calib_hist is not None
        assert observer._calib_hist.numel() <= MAX_BINS + 1
        assert len(observer._calib_bin_edges) == observer._calib_hist.numel() + 1
    assert observer._calib_hist.sum() == 3000
    assert observer.compute_amax("percentile", percentile=100) == pytest.approx(1e3 * values.max().item(), rel=0.01)


def test_a_histogram_that_need_not_shrink_is_the_frameworks_own() -> None:
    ours, theirs = GuardedHistogram(4, None, unsigned=False), calib.HistogramCalibrator(4, None, unsigned=False)
    rng = torch.Generator().manual_seed(0)
    for scale in (1.0, 2.0, 1.5):
        batch = torch.randn(1000, generator=rng) * scale
        ours.collect(batch)
        theirs.collect(batch)
    assert ours._calib_hist is not None
    assert torch.equal(ours._calib_hist, theirs._calib_hist)
    assert ours.compute_amax("percentile") == theirs.compute_amax("percentile")


def test_cuda_is_only_redirected_inside_the_context() -> None:
    tensor = torch.ones(2)
    with without_cuda():
        assert tensor.cuda() is tensor
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            tensor.cuda()


def test_the_frameworks_messages_are_silenced_for_a_while_only(caplog: pytest.LogCaptureFixture) -> None:
    quantizer = quant_nn.TensorQuantizer()
    with silenced(NOTICES, logger=LOGGER):
        quantizer.disable_calib()
    assert not caplog.records
    quantizer.disable_calib()
    assert [record.getMessage() for record in caplog.records] == ["Disable MaxCalibrator"]


def _prepare(
    model: nn.Module, spec: InputSpec, recipe: str = "w8a8", *, training: bool = False, input_bits: int = 8
) -> nn.Module:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(input_bits=input_bits))
    return calibrator.prepare(model, spec, Recipe.parse(recipe), training=training)


@pytest.mark.parametrize(("recipe", "told"), [("w1a8", "1 bits for weights"), ("w8a16", "16 bits for activations")])
def test_other_widths_are_refused(tiny_network: nn.Module, tiny_spec: InputSpec, recipe: str, told: str) -> None:
    with pytest.raises(UsageError, match=rf"supports 2 to 8 bits, got {told} \({recipe}\)\. Choose e\.g\. w8a8"):
        _prepare(tiny_network, tiny_spec, recipe)


def test_unsigned_levels_of_8_bits_are_refused(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(unsigned=True))
    with pytest.raises(
        UsageError, match=r"at most 7 bits, got 8 \(w4a8\).*int8, which ends at 127\. Use unsigned=auto"
    ):
        calibrator.prepare(tiny_network, tiny_spec, Recipe(4, 8), training=False)


def test_training_at_other_widths_is_refused(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    with pytest.raises(UsageError, match=r"supports 2 to 8 bits, got 1 bits for weights \(w1a8\)"):
        _prepare(tiny_network, tiny_spec, "w1a8", training=True)


def test_a_model_without_layers_to_quantize_is_refused() -> None:
    model = nn.Sequential(WithOwnForward(3, 3, 1), nn.Flatten())
    with pytest.raises(
        ModelError, match=r"finds none in Sequential \(0: WithOwnForward: a subclass.*Build the model from"
    ):
        _prepare(model, InputSpec((3, 4, 4)))
    with pytest.raises(ModelError, match="it has no layers"):
        _prepare(nn.Flatten(), InputSpec((3, 4, 4)))


def test_weights_must_be_finite(tiny_network: Any, tiny_spec: InputSpec) -> None:
    tiny_network.conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"the weight of 'conv' contains NaN or infinity\. Load valid weights"):
        _prepare(tiny_network, tiny_spec)


def test_the_spec_must_fit_the_model(tiny_network: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"does not accept inputs of shape \(1, 8, 8\)"):
        _prepare(tiny_network, InputSpec((1, 8, 8)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda batches: batches[:0], r"needs at least one batch, got none"),
        (lambda batches: [batches[0][:0]], r"needs at least one batch, got none"),
        (lambda batches: [batches[0], batches[1][:, :1]], r"shape \(samples, 3, 8, 8\), got \(16, 1, 8, 8\)"),
        (lambda batches: [batches[0] * float("nan")], r"a batch holds NaN or infinity"),
    ],
)
def test_unfit_data_is_refused(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    change: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    told: str,
) -> None:
    with pytest.raises(DataError, match=told):
        quantize(tiny_network, tiny_spec, change(tiny_batches))


class Exploding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs) / (inputs.sum() * 0))


def test_activations_must_stay_finite() -> None:
    with pytest.raises(ModelError, match=r"the input of 'second' is not finite for finite network inputs\. Fix"):
        quantize(Exploding(), InputSpec((4,)), [torch.ones(2, 4)])


def test_steps_must_come_in_their_order(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    calibrator = PytorchQuantizationCalibrator()
    with pytest.raises(UsageError, match=r"its own prepare\(\) returned, got TinyNetwork"):
        calibrator.calibrate(tiny_network, tiny_batches)
    prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(8, 8), training=False)
    with pytest.raises(UsageError, match=r"must see data before conversion\. Call calibrate\(\) first"):
        calibrator.convert(prepared)
