"""The torch.ao calibrator: what it quantizes, to which numbers, for which kernels."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx import Interpreter

import dfq_plugins as dfq
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.host.registry import build_registry
from dfq_plugins.quantization.formats import format_in_words
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.types import InputSpec, NumberFormat, QuantizedTensor, Recipe
from dfq_torch_ao.calibrator import TorchAoCalibrator
from dfq_torch_ao.engines import reduces_range
from dfq_torch_ao.notices import NOTICES
from dfq_torch_ao.options import TorchAoOptions
from dfq_torch_ao.run import run_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch.fx import GraphModule, Node

    from dfq_plugins.host.registry import Registry

    Change = Callable[[torch.Tensor], torch.Tensor]

ENGINES = [
    engine for engine in ("x86", "onednn", "fbgemm", "qnnpack") if engine in torch.backends.quantized.supported_engines
]
W8A8 = Recipe(8, 8)


def quantize(
    model: nn.Module, spec: InputSpec, batches: Iterable[torch.Tensor], recipe: Recipe = W8A8, **options: object
) -> GraphModule:
    calibrator = TorchAoCalibrator(TorchAoOptions(**options))  # type: ignore[arg-type]
    prepared = calibrator.prepare(model, spec, recipe)
    calibrator.calibrate(prepared, batches)
    return calibrator.convert(prepared)


def integers(model: GraphModule, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run a converted model and return the integers of every quantized tensor that a later node reads."""
    seen: dict[str, torch.Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> object:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and result.is_quantized and not _cut_off_next(n):
                seen[n.name] = result.int_repr()
            return result

    with torch.no_grad():
        Recorder(model).run(inputs)
    return seen


def _cut_off_next(node: Node) -> bool:
    return all(user.target is torch.clamp for user in node.users)


def input_quantizer(model: GraphModule) -> tuple[float, int]:
    """Scale and zero point of the first quantize_per_tensor."""
    node = next(node for node in model.graph.nodes if node.target is torch.quantize_per_tensor)
    scale, zero_point = (getattr(model, str(argument.target)) for argument in node.args[1:3])
    return scale.item(), zero_point.item()


class TestConversion:
    def test_layers_are_real_int8_modules(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches)
        assert type(converted.stem) is nniq.ConvReLU2d
        assert type(converted.conv) is nnq.Conv2d
        assert type(converted.linear) is nnq.Linear
        assert torch.ops.quantized.add_relu in {node.target for node in converted.graph.nodes}
        assert converted.stem.weight().dtype is torch.qint8
        assert converted.linear.weight().qscheme() is torch.per_channel_affine
        assert not any(isinstance(module, nn.BatchNorm2d | nn.ReLU) for module in converted.modules())

    def test_outputs_are_close_to_the_float_network(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches)
        inputs = torch.cat(tiny_batches)
        with torch.no_grad():
            expected, got = tiny_network(inputs), converted(inputs)
        assert (expected - got).abs().max() < 0.05 * (expected.max() - expected.min())
        assert (expected - got).abs().max() > 0  # a float model passed off as int8 would agree exactly

    @pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
    @pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "onednn"])
    def test_defaults_are_those_of_torch_ao(
        self, tiny_network: nn.Module, tiny_batches: list[torch.Tensor], engine: str
    ) -> None:
        per_channel = engine != "qnnpack"  # torch.ao's default for QNNPACK has one scale per tensor
        settings = {"engine": engine, "per_channel": per_channel, "output_margin": 1.0}
        converted = quantize(tiny_network, InputSpec((3, 8, 8)), tiny_batches, **settings)
        theirs = prepare_fx(tiny_network, get_default_qconfig_mapping(engine), (tiny_batches[0],))
        for batch in tiny_batches:
            theirs(batch)
        reference = convert_fx(theirs)
        for name in ("stem", "conv", "linear"):
            ours, expected = converted.get_submodule(name), reference.get_submodule(name)
            assert torch.equal(ours.weight().int_repr(), expected.weight().int_repr())
            assert (ours.scale, ours.zero_point) == (expected.scale, expected.zero_point)
        assert input_quantizer(converted) == input_quantizer(reference)

    def test_prepared_model_can_be_calibrated_further(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        calibrator = TorchAoCalibrator()
        prepared = calibrator.prepare(tiny_network, tiny_spec, W8A8)
        calibrator.calibrate(prepared, tiny_batches)
        first = calibrator.convert(prepared)
        calibrator.calibrate(prepared, [2 * tiny_batches[0]])
        assert calibrator.convert(prepared).conv.scale > first.conv.scale

    def test_minmax_observers_take_the_extremes(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        histogram = quantize(tiny_network, tiny_spec, tiny_batches)
        minmax = quantize(tiny_network, tiny_spec, tiny_batches, activation_observer="minmax")
        moving = quantize(tiny_network, tiny_spec, tiny_batches, activation_observer="moving-average-minmax")
        with torch.no_grad():
            outputs = tiny_network(torch.cat(tiny_batches))
        expected = (outputs.max().clamp(min=0) - outputs.min().clamp(max=0)) / 127
        assert minmax.linear.scale == pytest.approx(expected.item(), rel=1e-4)
        assert len({histogram.linear.scale, minmax.linear.scale, moving.linear.scale}) == 3

    @pytest.mark.parametrize(("reduce_range", "levels"), [(True, 127), (False, 255)])
    def test_reduce_range(
        self,
        tiny_network: nn.Module,
        tiny_spec: InputSpec,
        tiny_batches: list[torch.Tensor],
        reduce_range: bool,
        levels: int,
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches, reduce_range=reduce_range)
        assert input_quantizer(converted)[0] == pytest.approx(4 / levels)

    def test_a_model_in_training_mode_and_double_precision_is_taken(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        reference = quantize(tiny_network, tiny_spec, tiny_batches)
        converted = quantize(tiny_network.double().train(), tiny_spec, [batch.double() for batch in tiny_batches])
        assert torch.equal(converted(tiny_batches[0]), reference(tiny_batches[0]))


class TestBitWidths:
    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["w4a4", "w2a2", "w4a8", "w8a3", "w5a6", "w7a7"])
    def test_values_keep_to_the_levels_of_the_recipe(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], text: str
    ) -> None:
        recipe = Recipe.parse(text)
        converted = quantize(tiny_network, tiny_spec, tiny_batches, recipe)
        for name in ("stem", "conv", "linear"):
            weight = converted.get_submodule(name).weight().int_repr()
            assert weight.unique().numel() <= 2**recipe.weight_bits
            highest = 2 ** (recipe.weight_bits - 1) - 1
            assert weight.abs().max() == highest or recipe.weight_bits == 8
        # Ten times the calibrated range: what lies outside must not take levels that the recipe does not have.
        for name, values in integers(converted, 10 * tiny_batches[0]).items():
            assert values.min() >= 0, name
            assert values.max() <= 2**recipe.activation_bits - 1, name

    def test_all_sixteen_levels_are_used(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches, Recipe(4, 4), activation_observer="minmax")
        assert integers(converted, torch.cat(tiny_batches))["saturate_add_relu"].unique().tolist() == list(range(16))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_four_bits_on_every_engine(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], engine: str
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches, Recipe(4, 4), engine=engine)
        assert all(values.max() <= 15 for values in integers(converted, 10 * tiny_batches[0]).values())

    @pytest.mark.parametrize(
        ("recipe", "message"),
        [
            (
                Recipe(1, 8),
                "torch.ao quantizes weights to 2 to 8 bits (below 8 inside int8 storage), got 1 in w1a8. Choose",
            ),
            (
                Recipe(8, 16),
                "quantizes activations to 2 to 8 bits (below 8 inside int8 storage), got 16 in w8a16. Choose",
            ),
        ],
    )
    def test_other_widths_are_refused(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, recipe: Recipe, message: str
    ) -> None:
        with pytest.raises(UsageError, match="2 to 8 bits") as caught:
            TorchAoCalibrator().prepare(tiny_network, tiny_spec, recipe)
        assert message in str(caught.value)

    def test_sigmoid_stays_in_float_below_eight_bits(self, tiny_batches: list[torch.Tensor]) -> None:
        """Its int8 kernel writes 256 levels whatever the observer says."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3)).eval()
        converted = quantize(model, InputSpec((3, 8, 8)), tiny_batches, Recipe(4, 4))
        assert TorchAoCalibrator().describe(converted).unquantized == (
            ("1", "in float below 8 bits: its int8 kernel would not stay within the levels"),
        )
        assert all(values.max() <= 15 for values in integers(converted, 10 * tiny_batches[0]).values())

    def test_sigmoid_obeys_a_reduced_range(self, tiny_batches: list[torch.Tensor]) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3)).eval()
        spec = InputSpec((3, 8, 8))
        reduced = quantize(model, spec, tiny_batches, engine="x86")
        full = quantize(model, spec, tiny_batches, engine="x86", reduce_range=False)
        assert TorchAoCalibrator().describe(reduced).unquantized == (
            ("1", "in float: its int8 kernel would not stay within the reduced range"),
        )
        assert TorchAoCalibrator().describe(full).unquantized == ()
        requantized = [v for name, v in integers(reduced, 10 * tiny_batches[0]).items() if name.startswith("quantize_")]
        assert requantized[-1].max() <= 127


class Front(nn.Module):
    """Sends its input through `change` before the first convolution."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.conv(self.change(inputs))


class TestInputRange:
    @pytest.mark.parametrize("observer", ["histogram", "minmax", "moving-average-minmax"])
    def test_it_comes_from_the_specification(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], observer: str
    ) -> None:
        quiet = [0.1 * batch for batch in tiny_batches]
        converted = quantize(tiny_network, tiny_spec, quiet, activation_observer=observer)
        assert tiny_spec.input_range == (-2.0, 2.0)
        assert input_quantizer(converted) == (pytest.approx(4 / 127), 64)
        unknown = quantize(tiny_network, InputSpec((3, 8, 8)), quiet, activation_observer=observer)
        assert input_quantizer(unknown)[0] < 2 / 127

    @pytest.mark.parametrize(
        "change",
        [
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Identity(), nn.Dropout(), nn.ReflectionPad2d(1)),
            lambda inputs: nn.functional.pad(inputs, (0, 1, 0, 1)),
            lambda inputs: inputs[:, :, ::2, ::2],
            lambda inputs: inputs.permute(0, 1, 3, 2).contiguous(),
        ],
    )
    def test_it_holds_behind_operations_that_move_values(
        self, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], change: Change
    ) -> None:
        model = Front(change).eval()
        converted = quantize(model, tiny_spec, [0.1 * batch for batch in tiny_batches])
        assert input_quantizer(converted) == (pytest.approx(4 / 127), 64)

    @pytest.mark.parametrize(
        "change", [lambda inputs: (inputs - 0.5) / 0.01, nn.ConstantPad2d(1, 7.0), nn.BatchNorm2d(3), nn.LeakyReLU()]
    )
    def test_it_is_observed_behind_operations_that_change_values(
        self, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], change: Change
    ) -> None:
        model = Front(change).eval()
        converted = quantize(model, tiny_spec, [0.1 * batch for batch in tiny_batches], activation_observer="minmax")
        scales = [values.max() - values.min() for values in integers(converted, 0.1 * torch.cat(tiny_batches)).values()]
        assert max(scales) > 100  # the calibrated values fill their range

    def test_both_paths_from_the_input_get_it(self, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]) -> None:
        class TwoPaths(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3)

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return self.conv(inputs) + self.other(nn.functional.pad(inputs, (1, 1, 1, 1)))

        converted = quantize(TwoPaths().eval(), tiny_spec, [0.1 * batch for batch in tiny_batches])
        quantizers = [node for node in converted.graph.nodes if node.target is torch.quantize_per_tensor]
        assert len(quantizers) == 2
        assert all(getattr(converted, str(node.args[1].target)) == pytest.approx(4 / 127) for node in quantizers)


class TestClippingActivations:
    @pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(0.0, 6.0), nn.functional.relu6])
    def test_relu6_leaves_no_level_of_its_input_unused(self, activation: Change) -> None:
        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
                self.pool = nn.MaxPool2d(2)
                self.activation = activation

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return self.last(self.pool(self.activation(self.conv(inputs))))

        rng = torch.Generator().manual_seed(0)
        inputs = 40 * torch.randn(64, 3, 8, 8, generator=rng)
        model = Network().eval()
        calibrator = TorchAoCalibrator(TorchAoOptions(activation_observer="minmax"))
        prepared = calibrator.prepare(model, InputSpec((3, 8, 8)), W8A8)
        with torch.no_grad():
            assert model.conv(inputs).max() > 20
            assert torch.equal(prepared(inputs), model(inputs))  # the observed network computes the same
        converted = calibrator.convert(prepared)
        assert (converted.conv.scale, converted.conv.zero_point) == (pytest.approx(6 / 127), 0)

    def test_an_output_that_is_also_read_elsewhere_keeps_its_range(self) -> None:
        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                hidden = self.conv(inputs)
                return nn.functional.relu6(hidden) + hidden

        inputs = 40 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        converted = quantize(Network().eval(), InputSpec((3, 8, 8)), [inputs], activation_observer="minmax")
        assert converted.conv.scale > 10 / 127


class TestEngines:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_converted_model_runs_under_the_default_engine(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], engine: str
    ) -> None:
        before = torch.backends.quantized.engine
        converted = quantize(tiny_network, tiny_spec, tiny_batches, engine=engine)
        assert torch.backends.quantized.engine == before
        inputs = torch.cat(tiny_batches)
        with torch.no_grad():
            agreement = (converted(inputs).argmax(1) == tiny_network(inputs).argmax(1)).float().mean()
        assert agreement > 0.9

    def test_auto_is_the_engine_of_the_process(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        before = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = "qnnpack"
            prepared = TorchAoCalibrator().prepare(tiny_network, tiny_spec, W8A8)
        finally:
            torch.backends.quantized.engine = before
        assert run_of(prepared)[1].engine == "qnnpack"

    def test_unsupported_engine(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dfq_torch_ao.engines._KNOWN_ENGINES", ("qnnpack",))
        with pytest.raises(UsageError) as caught:
            TorchAoCalibrator(TorchAoOptions(engine="x86")).prepare(tiny_network, tiny_spec, W8A8)
        assert str(caught.value) == (
            "The quantized engine must be one that this build of torch has, got 'x86'. Set engine= to one of: qnnpack."
        )

    def test_engine_is_restored_after_an_exception(
        self,
        tiny_network: nn.Module,
        tiny_spec: InputSpec,
        tiny_batches: list[torch.Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(_: nn.Module) -> nn.Module:
            assert torch.backends.quantized.engine == "qnnpack"
            raise RuntimeError("no kernel\nand a page of C++")

        before = torch.backends.quantized.engine
        monkeypatch.setattr("dfq_torch_ao.calibrator.convert_fx", fail)
        with pytest.raises(ModelError) as caught:
            quantize(tiny_network, tiny_spec, tiny_batches, engine="qnnpack")
        assert torch.backends.quantized.engine == before
        assert str(caught.value) == (
            "torch.ao with the engine 'qnnpack' cannot convert this network (RuntimeError: no kernel). Try another "
            "engine, or keep the layer in float with the option non_traceable."
        )


class Gate(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.sum() > 0:
            return inputs
        return -inputs


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.last = nn.Conv2d(3, 4, 3), Gate(), nn.Conv2d(4, 4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.gate(self.conv(inputs)))


class TestUntraceable:
    def test_message_names_line_module_and_way_round(self) -> None:
        line = Gate.forward.__code__.co_firstlineno + 1
        with pytest.raises(ModelError) as caught:
            TorchAoCalibrator().prepare(Gated().eval(), InputSpec((3, 8, 8)), W8A8)
        message = str(caught.value)
        assert f"bool() reads a tensor in 'gate' at {__file__}:{line}: `if inputs.sum() > 0:`" in message
        assert "with the option non_traceable=('gate',)" in message
        assert "set_non_traceable_module_names(['gate'])" in message

    def test_the_way_round_works(self, tiny_batches: list[torch.Tensor]) -> None:
        converted = quantize(Gated().eval(), InputSpec((3, 8, 8)), tiny_batches, non_traceable=("gate",))
        coverage = TorchAoCalibrator().describe(converted)
        assert coverage.layers == ("conv", "last")
        assert coverage.unquantized == (("gate", "left out by the option non_traceable"),)

    def test_a_line_of_the_model_itself(self) -> None:
        with pytest.raises(ModelError, match=r"in the network's own forward at .* Move the line into a submodule"):
            TorchAoCalibrator().prepare(Gate(), InputSpec((3, 8, 8)), W8A8)

    def test_other_failures_name_the_cause(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> nn.Module:
            raise KeyError("pattern")

        monkeypatch.setattr("dfq_torch_ao.calibrator.prepare_fx", fail)
        with pytest.raises(
            ModelError, match=r"torch.ao cannot prepare this network \(KeyError: 'pattern'\)\. Move the"
        ):
            TorchAoCalibrator().prepare(tiny_network, tiny_spec, W8A8)


class TestRefusals:
    def test_training_at_other_widths(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        with pytest.raises(UsageError, match=r"quantizes activations to 2 to 8 bits .*, got 16 in w8a16"):
            TorchAoCalibrator().prepare(tiny_network, tiny_spec, Recipe(8, 16), training=True)

    @pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 9), (3, 8, 8)])
    def test_wrong_shape(self, tiny_network: nn.Module, tiny_spec: InputSpec, shape: tuple[int, ...]) -> None:
        calibrator = TorchAoCalibrator()
        prepared = calibrator.prepare(tiny_network, tiny_spec, W8A8)
        with pytest.raises(DataError) as caught:
            calibrator.calibrate(prepared, [torch.zeros(shape)])
        assert f"must have the shape (samples, 3, 8, 8), got {shape}" in str(caught.value)

    def test_values_that_are_not_finite(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        calibrator = TorchAoCalibrator()
        prepared = calibrator.prepare(tiny_network, tiny_spec, W8A8)
        tiny_batches[1][0, 0, 0, 0] = float("nan")
        with pytest.raises(DataError, match="Inputs must be finite, but a batch holds NaN or infinity"):
            calibrator.calibrate(prepared, tiny_batches)

    def test_no_data(self, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        calibrator = TorchAoCalibrator()
        prepared = calibrator.prepare(tiny_network, tiny_spec, W8A8)
        with pytest.raises(DataError, match="Calibration needs at least one batch, got none"):
            calibrator.calibrate(prepared, [])
        with pytest.raises(UsageError, match=r"'activation_post_process_\d+' saw none\. Call calibrate\(\) first"):
            calibrator.convert(prepared)

    def test_a_model_from_elsewhere(self, tiny_network: nn.Module) -> None:
        with pytest.raises(UsageError, match=r"its own prepare\(\) returned, got TinyNetwork"):
            TorchAoCalibrator().convert(tiny_network)

    def test_nothing_to_quantize(self, tiny_batches: list[torch.Tensor]) -> None:
        model = nn.Sequential(nn.GELU(), nn.SiLU()).eval()
        with pytest.raises(ModelError, match=r"quantized no layer of this model \(it computes: GELU, SiLU\)\. Use lay"):
            quantize(model, InputSpec((3, 8, 8)), tiny_batches)


class TestCoverage:
    def test_every_layer_is_listed(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        # The whole range on every processor: without VNNI this engine would leave activations seven bits.
        converted = quantize(tiny_network, tiny_spec, tiny_batches, engine="onednn", reduce_range=False)
        coverage = TorchAoCalibrator().describe(converted)
        int8 = NumberFormat(8, signed=True, symmetric=True, per_channel=True, stored_bits=8)
        uint8 = NumberFormat(8, signed=False, symmetric=False, per_channel=False, stored_bits=8)
        assert [replace(tensor, format=replace(tensor.format, range=None)) for tensor in coverage.quantized] == [
            QuantizedTensor("stem", "quantized.ConvReLU2d", "weight", int8),
            QuantizedTensor("stem", "quantized.ConvReLU2d", "input", uint8),
            QuantizedTensor("conv", "quantized.Conv2d", "weight", int8),
            QuantizedTensor("conv", "quantized.Conv2d", "input", uint8),
            QuantizedTensor("add_relu", "add_relu", "input", uint8),
            QuantizedTensor("mean", "mean", "input", uint8),
            QuantizedTensor("linear", "quantized.Linear", "weight", int8),
            QuantizedTensor("linear", "quantized.Linear", "input", uint8),
        ]
        ranges = {tensor.name: tensor.format.range for tensor in coverage.quantized if tensor.role == "input"}
        low, high = ranges["stem"] or (0, 0)
        assert (low, high) == pytest.approx(tiny_spec.input_range, abs=(high - low) / 255)
        assert ranges["add_relu"] is None  # its inputs have different ones
        assert coverage.unquantized == ()

    def test_formats_are_those_of_the_recipe(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        low = quantize(tiny_network, tiny_spec, tiny_batches, Recipe(4, 3), per_channel=False)
        coverage = TorchAoCalibrator().describe(low)
        assert coverage.layers == ("stem", "conv", "add_relu", "linear")
        assert [format_in_words(coverage.format_of("stem", role)) for role in ("weight", "input")] == [
            "int4 in 8 bits per tensor, symmetric",
            "uint3 in 8 bits per tensor",
        ]

    def test_reduced_range_is_told(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        converted = quantize(tiny_network, tiny_spec, tiny_batches, reduce_range=True)
        form = TorchAoCalibrator().describe(converted).format_of("stem", "input")
        assert format_in_words(form) == "uint7 in 8 bits per tensor"

    def test_float_layers_are_named_with_the_reason(self, tiny_batches: list[torch.Tensor]) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3)).eval()
        coverage = TorchAoCalibrator().describe(quantize(model, InputSpec((3, 8, 8)), tiny_batches))
        assert coverage.layers == ("0", "3")
        assert coverage.unquantized == (
            ("1", "torch.ao has no int8 kernel for SiLU in this place"),
            ("2", "only moves values, in float, next to quantized layers"),
        )


class TestSideEffects:
    def test_the_model_and_the_process_are_left_as_they_were(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor]
    ) -> None:
        tiny_network.train()
        gated = Gated()
        state = {name: value.clone() for name, value in tiny_network.state_dict().items()}
        random_state, filters = torch.get_rng_state(), list(warnings.filters)
        engine, gradients = torch.backends.quantized.engine, torch.is_grad_enabled()
        quantize(tiny_network, tiny_spec, tiny_batches, Recipe(4, 4), engine="qnnpack")
        with pytest.raises(ModelError):
            quantize(gated, tiny_spec, tiny_batches)
        assert all(torch.equal(value, state[name]) for name, value in tiny_network.state_dict().items())
        assert all(parameter.requires_grad for parameter in tiny_network.parameters())
        assert tiny_network.training
        assert not any(module._forward_pre_hooks or hasattr(module, "qconfig") for module in tiny_network.modules())
        assert torch.equal(torch.get_rng_state(), random_state)
        assert (torch.backends.quantized.engine, torch.is_grad_enabled()) == (engine, gradients)
        assert warnings.filters == filters

    def test_only_the_known_notices_are_silenced(self) -> None:
        with silenced(NOTICES):
            warnings.warn("torch.ao.quantization is deprecated and will be removed in 2.10.", DeprecationWarning)  # noqa: B028
            with pytest.raises(DeprecationWarning, match="something else"):
                warnings.warn("something else is deprecated", DeprecationWarning)  # noqa: B028


def only_this_plugin() -> Registry:
    mine = [point for point in entry_points(group="dfq_plugins") if point.name == "torch-ao"]
    return build_registry(entry_points=mine)


class TestPlugin:
    def test_it_is_found_through_the_hooks(self) -> None:
        registry = only_this_plugin()
        calibrator = registry.create(
            "calibrator", "torch-ao", {"per_channel": "false", "reduce_range": "none", "non_traceable": "a.b,c"}
        )
        assert isinstance(calibrator, TorchAoCalibrator)
        assert calibrator.options == TorchAoOptions(per_channel=False, non_traceable=("a.b", "c"))

    def test_plugin_module_leaves_torch_alone(self) -> None:
        code = "import sys, dfq_torch_ao.plugin as it; list(it.dfq_calibrators()); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"

    def test_through_the_pipeline(
        self, tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
    ) -> None:
        run = dfq.run_quantization(
            tiny_network,
            torch.cat(tiny_batches),
            calibrator="torch-ao",
            spec=tiny_spec,
            output=tmp_path,
            registry=only_this_plugin(),
        )
        assert run.agreement > 0.9
        assert len(run.coverage.layers) == 5
        assert [artifact.path.name for artifact in run.artifacts] == ["model.torchscript.pt"]

    @pytest.mark.parametrize("module", ["qconfig", "tensor_formats"])
    def test_doctests(self, module: str) -> None:
        results = doctest.testmod(importlib.import_module(f"dfq_torch_ao.{module}"))
        assert results.attempted
        assert not results.failed


@pytest.mark.parametrize(("vnni", "reduced"), [(True, False), (False, True)])
def test_onednn_reduces_the_range_where_its_sums_could_overflow(
    vnni: bool, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert reduces_range(TorchAoOptions(), "onednn") == reduced
    assert reduces_range(TorchAoOptions(), "x86")
    assert not reduces_range(TorchAoOptions(reduce_range=False), "x86")


@pytest.mark.parametrize(("engine", "reduce_range", "factor"), [("onednn", False, 2.0), ("x86", True, 1.0)])
def test_the_output_has_room_above_what_calibration_saw(
    engine: str,
    reduce_range: bool,
    factor: float,
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    tiny_batches: list[torch.Tensor],
) -> None:
    """Larger logits than any synthetic input gives must not all saturate; the reduced range has that room anyway."""
    scales = []
    for margin in (1.0, 2.0):
        calibrator = TorchAoCalibrator(TorchAoOptions(engine=engine, reduce_range=reduce_range, output_margin=margin))
        prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(8, 8))
        calibrator.calibrate(prepared, tiny_batches)
        scales.append(calibrator.convert(prepared).linear.scale)
    assert scales[1] == pytest.approx(factor * scales[0], rel=0.02)
