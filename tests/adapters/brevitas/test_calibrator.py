"""The calibrator "brevitas": widths, scales, graph rewrites, refinement of weights and biases, and errors."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfq_brevitas.bias import channel_mean, correct_biases, is_weight_layer
from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_brevitas.foreign import Dequantize
from dfq_brevitas.framework import quant_nn, quantization_status_manager
from dfq_brevitas.grid import OnGrid
from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.quantization.formats import format_in_words
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfq_brevitas.framework import GraphModule


def quantize(
    network: nn.Module, spec: InputSpec, batches: Iterable[torch.Tensor], recipe: str = "w8a8", **options: Any
) -> GraphModule:
    calibrator = BrevitasCalibrator(BrevitasOptions(**options))
    prepared = calibrator.prepare(network, spec, Recipe.parse(recipe), training=False)
    calibrator.calibrate(prepared, batches)
    return calibrator.convert(prepared)


def weight_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if is_weight_layer(module)}


class SlicedShortcut(nn.Module):
    """A shortcut that slices and pads channels, as CIFAR ResNets with option A do, and functional ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.stem(inputs))
        shortcut = functional.pad(hidden[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.linear(functional.relu(self.conv(hidden) + shortcut).mean((2, 3)))


@pytest.fixture
def sliced() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SlicedShortcut().eval()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "weight_bits", "activation_bits"), [("w8a8", 8, 8), ("w4a8", 4, 8), ("w2a3", 2, 3)])
def test_widths_are_read_back_from_the_quantizers(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
    recipe: str,
    weight_bits: int,
    activation_bits: int,
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, recipe)
    coverage = BrevitasCalibrator().describe(converted)
    for name, layer in weight_layers(converted).items():
        assert format_in_words(coverage.format_of(name, "weight")) == f"int{weight_bits} per channel, symmetric"
        assert int(layer.weight_quant.bit_width()) == weight_bits
    assert format_in_words(coverage.format_of("conv", "input")) == f"uint{activation_bits} per tensor, symmetric"
    assert format_in_words(coverage.format_of("stem", "input")) == "int8 per tensor, symmetric"
    additions = [row for row in coverage.quantized if "addition" in row.kind]
    assert [format_in_words(tensor.format) for tensor in additions] == ["int8 per tensor, symmetric"]


@pytest.mark.slow
def test_input_and_additions_may_be_as_narrow_as_all_others(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w2a3", input_bits=3, addition_bits=3)
    coverage = BrevitasCalibrator().describe(converted)
    forms = coverage.format_of("stem", "input"), coverage.format_of("add_quant", "activation")
    assert [format_in_words(form) for form in forms] == ["int3 per tensor, symmetric"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("narrow", "lowest"), [(False, -8), (True, -7)])
def test_each_channel_holds_few_levels(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], narrow: bool, lowest: int
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w4a4", narrow_range=narrow)
    for layer in weight_layers(converted).values():
        integers = layer.quant_weight().int(float_datatype=True)
        assert integers.min() >= lowest
        assert integers.max() == 7
        quantized = layer.quant_weight().value.flatten(1)
        assert max(len(channel.unique()) for channel in quantized) <= 7 - lowest + 1


@pytest.mark.slow
def test_activations_take_few_values(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w8a3", input_bits=3)
    seen = {}
    for name in ("inputs_quant", "relu1", "relu2"):
        converted.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, getattr(output, "value", output))
        )
    converted(tiny_batches[0])
    assert {name: len(values.unique()) <= 8 for name, values in seen.items()} == dict.fromkeys(seen, True)
    assert len(seen) == 3


def test_eight_bits_stay_close_to_float(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches)
    with torch.no_grad():
        expected, got = tiny_network(tiny_batches[0]), converted(tiny_batches[0])
    assert type(got) is torch.Tensor
    assert (expected - got).abs().max() < 0.05 * expected.abs().max()


def test_batch_norm_is_merged_without_changing_the_function(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, bias_correction="none")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    off = {"disable_act_quant": True, "disable_weight_quant": True, "disable_bias_quant": True}
    with torch.no_grad(), quantization_status_manager(converted, is_training=False, **off):
        torch.testing.assert_close(converted(tiny_batches[0]), tiny_network(tiny_batches[0]), atol=1e-5, rtol=1e-5)


def test_batch_norm_stays_where_it_shall(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, merge_batch_norm=False)
    floating = dict(BrevitasCalibrator().describe(converted).unquantized)
    assert floating["norm1"] == "BatchNorm2d: Brevitas has no quantizer for it in graph mode"


@pytest.mark.slow
def test_input_scale_covers_the_known_range(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    narrow = [batch * 0.1 for batch in tiny_batches]
    known = quantize(tiny_network, tiny_spec, narrow).inputs_quant.act_quant
    assert known.scale().item() * 127 == pytest.approx(2.0)
    assert known.is_signed
    observed = quantize(tiny_network, tiny_spec, narrow, known_input_range=False).inputs_quant.act_quant
    assert observed.scale().item() * 127 < 0.5
    unknown = quantize(tiny_network, InputSpec((3, 8, 8)), narrow).inputs_quant.act_quant
    assert unknown.scale().item() == pytest.approx(observed.scale().item())


def test_input_is_unsigned_where_it_is_never_negative(
    tiny_network: nn.Module, tiny_batches: list[torch.Tensor]
) -> None:
    spec = InputSpec((3, 8, 8), value_range=(0.0, 1.0))
    quantizer = quantize(tiny_network, spec, [batch.abs() * 0.2 for batch in tiny_batches]).inputs_quant.act_quant
    assert not quantizer.is_signed
    assert quantizer.scale().item() * 255 == pytest.approx(1.0)


@pytest.mark.parametrize(("lowest", "levels", "widest"), [(0.0, 255, 1.0), (-1.0, 127, 1.0)])
def test_the_input_has_a_width_of_its_own(
    tiny_network: nn.Module, tiny_batches: list[torch.Tensor], lowest: float, levels: int, widest: float
) -> None:
    spec = InputSpec((3, 8, 8), value_range=(lowest, 1.0))
    inputs = [batch.clamp(lowest, 1.0) for batch in tiny_batches]
    converted = quantize(tiny_network, spec, inputs, "w4a4")
    own = converted.inputs_quant.act_quant
    assert int(own.bit_width()) == 8
    assert own.is_signed == (lowest < 0)
    assert own.scale().item() * levels == pytest.approx(widest)
    assert int(converted.relu1.act_quant.bit_width()) == 4
    form = BrevitasCalibrator().describe(converted).format_of("inputs_quant", "activation")
    assert form is not None
    assert form.bits == 8
    assert form.range is not None
    assert form.range[1] == pytest.approx(own.scale().item() * (255 if lowest >= 0 else 127))


def test_both_branches_of_an_addition_share_one_scale(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w4a4", addition_bits=4)
    shared, feeding = converted.add_quant.act_quant, converted.relu1.act_quant
    assert shared.scale().item() == feeding.scale().item()
    assert shared.is_signed
    assert not feeding.is_signed


def test_additions_have_a_width_of_their_own(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w4a4")
    shared, feeding = converted.add_quant.act_quant, converted.relu1.act_quant
    assert (int(shared.bit_width()), int(feeding.bit_width())) == (8, 4)
    assert shared.scale().item() < feeding.scale().item()
    nodes = {node.name: node for node in converted.graph.nodes}
    assert [source.target for source in nodes["add"].all_input_nodes] == ["add_quant", "add_quant"]
    # The shortcut is the activation before it is quantized for the layers.
    assert nodes["relu1_shortcut"].args == nodes["relu1"].args
    assert {user.target for user in nodes["relu1_shortcut"].users} == {"add_quant"}
    assert not any("shortcut" in name for name, _ in BrevitasCalibrator().describe(converted).unquantized)


class LinearBottleneck(nn.Module):
    """A shortcut with nothing between the sum and the layers behind it, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        hidden = hidden + self.first(hidden)
        return self.last(hidden + self.second(hidden)).mean((2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("addition_bits", [4, 8])
def test_sums_that_can_be_negative_stay_signed(
    tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], addition_bits: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LinearBottleneck().eval()
    converted = quantize(network, tiny_spec, tiny_batches, "w8a4", addition_bits=addition_bits)
    assert converted.add_output_quant.act_quant.is_signed
    with torch.no_grad():
        expected, found = network(tiny_batches[0]), converted(tiny_batches[0])
    assert (expected - found).norm() < 0.25 * expected.norm()
    nodes = {node.name: node for node in converted.graph.nodes}
    reads = [source.all_input_nodes[0].name for source in nodes["add_1"].all_input_nodes]
    assert reads == (["add", "second"] if addition_bits == 8 else reads)


def test_sliced_and_padded_shortcut_stays_on_the_grid(
    sliced: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(sliced, tiny_spec, tiny_batches, "w4a4", addition_bits=4)
    assert sum(isinstance(module, OnGrid) for module in converted.modules()) == 2
    assert converted.add_quant.act_quant.scale().item() == converted.relu.act_quant.scale().item()
    rows = BrevitasCalibrator().describe(converted)
    assert sum("addition" in row.kind for row in rows.quantized) == 1


def test_pooled_input_of_the_classifier_is_unsigned(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w4a4")
    coverage = BrevitasCalibrator().describe(converted)
    assert format_in_words(coverage.format_of("linear", "input")) == "uint4 per tensor, symmetric"


def test_logits_keep_the_accumulators_precision(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w2a2")
    assert len(converted(tiny_batches[0]).unique()) > 4
    floating = BrevitasCalibrator().describe(converted).unquantized
    assert ("(output)", "the network's output keeps the accumulator's precision") in floating


def test_operations_that_brevitas_does_not_know_get_plain_tensors(
    tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.relu = nn.ReLU()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            left, right = self.relu(self.conv(inputs)).chunk(2, dim=1)
            return self.relu(left - right).amax((2, 3))

    converted = quantize(Foreign(), tiny_spec, tiny_batches)
    assert any(isinstance(module, Dequantize) for module in converted.modules())
    assert converted(tiny_batches[0]).shape == (16, 2)


def test_relu6_clips_before_its_range_is_found(tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight.mul_(40)
        expected = network(tiny_batches[0])
    converted = quantize(network, tiny_spec, tiny_batches)
    clipped = converted.get_submodule("1")
    assert type(clipped).__name__ == "QuantReLU6"
    assert clipped.act_quant.scale().item() * 255 == pytest.approx(6.0)
    assert (converted(tiny_batches[0]) - expected).abs().max() < 0.05 * expected.abs().max()
    equalized = quantize(network, tiny_spec, tiny_batches, equalization_iterations=1)
    assert type(equalized.get_submodule("1")) is quant_nn.QuantReLU


def test_output_is_in_float_behind_a_final_reshape(tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    converted = quantize(network, tiny_spec, tiny_batches, "w2a2")
    assert len(converted(tiny_batches[0]).unique()) > 16
    assert not any("output" in row.name for row in BrevitasCalibrator().describe(converted).quantized)


def test_output_of_a_network_that_ends_in_relu_is_a_plain_tensor(
    tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
    assert type(quantize(network, tiny_spec, tiny_batches)(tiny_batches[0])) is torch.Tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"weight_scale": "mse"},
        {"weight_scale": "mse", "mse_candidates": 5, "per_channel": False},
        {"weight_scale": "max", "per_channel": False},
        {"activation_scale": "mse", "mse_candidates": 8},
        {"activation_scale": "max"},
        {"activation_scale": "percentile", "percentile": 99.0},
        {"equalization_iterations": 5},
        {"quantize_bias": False},
        {"bias_correction": "layer"},
        {"bias_correction": "none"},
        {"gptq": True},
        {"learned_round": True, "learned_round_steps": 5},
    ],
    ids=str,
)
def test_every_option_leaves_a_working_network(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], options: dict[str, Any]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, **options)
    with torch.no_grad():
        expected, got = tiny_network(tiny_batches[0]), converted(tiny_batches[0])
    assert (expected - got).abs().mean() < 0.1 * expected.abs().max()
    granularity = "channel" if options.get("per_channel", True) else "tensor"
    coverage = BrevitasCalibrator().describe(converted)
    assert format_in_words(coverage.format_of("conv", "weight")) == f"int8 per {granularity}, symmetric"
    assert converted.conv.bias_quant.is_quant_enabled == options.get("quantize_bias", True)


@pytest.mark.slow
def test_the_statistic_decides_the_scale(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    def scale(**options: Any) -> float:
        converted = quantize(tiny_network, tiny_spec, tiny_batches, "w4a4", **options)
        return converted.relu2.act_quant.scale().item()

    largest = scale(activation_scale="max")
    assert scale(activation_scale="percentile", percentile=100) == pytest.approx(largest)
    assert scale(activation_scale="percentile", percentile=90) < 0.9 * largest
    assert scale(activation_scale="mse") < largest


def test_max_scale_is_the_mean_over_batches_of_the_largest_value(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches, "w8a4", activation_scale="max")
    found = []
    tiny_network.relu2.register_forward_hook(lambda _module, _inputs, output: found.append(output.max().item()))
    with torch.no_grad():
        for batch in tiny_batches:
            tiny_network(batch)
    assert converted.relu2.act_quant.scale().item() * 15 == pytest.approx(sum(found) / len(found), rel=1e-4)


@pytest.mark.slow
def test_bias_correction_restores_the_means_of_the_float_network(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    inputs = torch.cat(tiny_batches)

    def drift(correction: str, strength: float = 1.0) -> float:
        options = {"bias_correction": correction, "correction_strength": strength, "quantize_bias": False}
        converted = quantize(tiny_network, tiny_spec, [inputs], "w3a3", **options)
        with torch.no_grad():
            return (tiny_network(inputs).mean(0) - converted(inputs).mean(0)).abs().max().item()

    assert drift("none") > 0.01
    assert drift("layer") > 1e-3
    assert drift("network") < 1e-4
    assert drift("network") < drift("network", strength=0.8) < drift("none")


def test_channel_mean_knows_where_the_channels_are() -> None:
    outputs = torch.arange(24.0).reshape(2, 3, 4)
    torch.testing.assert_close(channel_mean(outputs, nn.Conv1d(1, 1, 1)), outputs.mean((0, 2)))
    linear = quant_nn.QuantLinear(4, 4, bias=True)
    torch.testing.assert_close(channel_mean(outputs, linear), outputs.mean((0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"gptq": True}, {"learned_round": True, "learned_round_steps": 200}], ids=str)
def test_chosen_weights_are_on_the_grid_and_differ_from_rounding(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], options: dict[str, Any]
) -> None:
    plain = quantize(tiny_network, tiny_spec, tiny_batches, "w3a8", bias_correction="none")
    chosen = quantize(tiny_network, tiny_spec, tiny_batches, "w3a8", bias_correction="none", **options)
    before, after = plain.conv.quant_weight(), chosen.conv.quant_weight()
    torch.testing.assert_close(before.scale, after.scale)
    assert after.is_valid
    assert (before.int(float_datatype=True) != after.int(float_datatype=True)).any()
    with torch.no_grad():
        errors = [(model(tiny_batches[0]) - tiny_network(tiny_batches[0])).square().mean() for model in (plain, chosen)]
    assert errors[1] < errors[0]


def test_equalization_mends_per_tensor_weights(tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    spread = torch.logspace(-2, 2, 8)
    with torch.no_grad():
        network[0].weight.mul_(spread[:, None, None, None])
        network[0].bias.mul_(spread)
        network[2].weight.div_(spread[None, :, None, None])
    settings = {"per_channel": False, "bias_correction": "none", "weight_scale": "max"}
    with torch.no_grad():
        expected = network(tiny_batches[0])
        errors = [
            (quantize(network, tiny_spec, tiny_batches, equalization_iterations=rounds, **settings)(tiny_batches[0])
             - expected).abs().max().item()
            for rounds in (0, 10)
        ]  # fmt: skip
    assert errors[1] < 0.2 * errors[0]


def test_a_generator_of_batches_is_enough(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    listed = quantize(tiny_network, tiny_spec, tiny_batches, "w4a4", gptq=True)
    streamed = quantize(tiny_network, tiny_spec, (batch for batch in tiny_batches), "w4a4", gptq=True)
    torch.testing.assert_close(listed(tiny_batches[0]), streamed(tiny_batches[0]))


def test_the_callers_model_and_the_process_stay_as_they_were(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    before, state = copy.deepcopy(tiny_network.state_dict()), torch.get_rng_state()
    tiny_network.train()
    first, cat = nn.Conv2d.forward, torch.cat
    quantize(tiny_network, tiny_spec, tiny_batches, gptq=True, learned_round=True, learned_round_steps=2)
    assert tiny_network.training
    assert all(torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items())
    assert all(parameter.requires_grad for parameter in tiny_network.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert (nn.Conv2d.forward, torch.cat) == (first, cat)
    assert torch.is_grad_enabled()


def test_conversion_copies_and_a_copy_computes_the_same(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    calibrator = BrevitasCalibrator(BrevitasOptions(gptq=True))
    prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(4, 4))
    calibrator.calibrate(prepared, tiny_batches)
    converted = calibrator.convert(prepared)
    assert converted is not prepared
    expected = prepared(tiny_batches[0])
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.zero_()
    torch.testing.assert_close(copy.deepcopy(converted)(tiny_batches[0]), expected)
    assert not converted.training


def test_the_result_is_brevitas_own(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
) -> None:
    converted = quantize(tiny_network, tiny_spec, tiny_batches)
    assert {type(module).__module__.split(".")[0] for module in weight_layers(converted).values()} == {"brevitas"}
    assert isinstance(converted.relu1, quant_nn.QuantReLU)


def test_percentiles_follow_the_width() -> None:
    found = [BrevitasOptions().percentile_for(bits) for bits in range(2, 9)]
    assert found == [99.75, 99.75, 99.75, 99.9, 99.9, 100.0, 100.0]
    assert BrevitasOptions(percentile=95.0).percentile_for(4) == 95.0


def test_a_bias_is_corrected_by_the_mean_over_all_batches() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    calibrator = BrevitasCalibrator(BrevitasOptions(bias_correction="none"))
    batches = [torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    batches[1] = batches[1] - 3
    prepared = calibrator.prepare(network, InputSpec((3, 2, 2)), Recipe(3, 3), training=False)
    calibrator.calibrate(prepared, batches)
    biases = []
    for data in ([], batches[:1], batches[1:], batches):
        corrected = copy.deepcopy(prepared)
        correct_biases(corrected, data)
        (layer,) = [module for module in corrected.modules() if is_weight_layer(module)]
        biases.append(layer.bias.detach())
    none, first, second, both = biases
    assert not torch.allclose(first, second)
    torch.testing.assert_close(both - none, (first + second) / 2 - none)
