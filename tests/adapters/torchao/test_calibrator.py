"""What torchao makes of a network: the graph, its ranges, the quantizers, and what is left in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import dfq_plugins as dfq
import pt2e_quantizers
from dfq_plugins.errors import ModelError, PluginError, UsageError
from dfq_plugins.types import InputSpec, NetworkSpec, Recipe
from dfq_torchao.calibrator import TorchaoCalibrator
from dfq_torchao.options import TorchaoOptions
from kinds_of_networks import Classifier, PreActivation
from tiny_networks import settle_batch_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

W8A8 = Recipe(8, 8)
IMAGE = InputSpec((3, 8, 8))


def converted(network: nn.Module, inputs: Tensor, spec: Any = IMAGE, **options: Any) -> Any:
    worker = TorchaoCalibrator(TorchaoOptions(**options))
    prepared = worker.prepare(network, spec, W8A8)
    worker.calibrate(prepared, [inputs])
    return worker.convert(prepared)


def formats(model: nn.Module) -> dict[tuple[str, str], Any]:
    return {(tensor.name, tensor.role): tensor.format for tensor in TorchaoCalibrator().describe(model).quantized}


def decibels(network: nn.Module, quantized: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        expected, found = network(inputs), quantized(inputs)
    return float(10 * torch.log10(expected.var() / (expected - found).square().mean()))


class SharedReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.act(self.first(inputs))
        hidden = self.act(self.second(hidden) + hidden)
        return self.head(hidden.mean((2, 3)))


class Functional(SharedReLU):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs))
        hidden = functional.relu(self.second(hidden) + hidden)
        return self.head(hidden.mean((2, 3)))


def test_every_layer_is_quantized_under_its_own_name(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    found = formats(converted(tiny_network, tiny_batches[0], tiny_spec, reduce_range=True))
    assert {name for name, role in found if role == "weight"} == {"stem", "conv", "linear"}
    weight, activation = found["conv", "weight"], found["conv", "input"]
    assert (weight.bits, weight.signed, weight.symmetric, weight.per_channel) == (8, True, True, True)
    assert (activation.bits, activation.stored_bits, activation.signed) == (7, 8, False)


@pytest.mark.parametrize("kind", [SharedReLU, Functional])
def test_one_activation_in_several_places_is_fused_in_each(kind: type[nn.Module]) -> None:
    inputs = torch.randn(16, 3, 8, 8)
    network = kind().eval()
    model = converted(network, inputs)
    assert decibels(network, model, inputs) > 30
    left = [name for name, _ in TorchaoCalibrator().describe(model).unquantized]
    assert sum("act" in name or "relu" in name for name in left) == 1  # in front of the mean
    assert all(not form.signed for (_, role), form in formats(model).items() if role == "input")


def test_any_batch_size_runs(tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]) -> None:
    model = converted(tiny_network, tiny_batches[0][:1], tiny_spec)
    assert [len(model(tiny_batches[0][:size])) for size in (1, 2, 7)] == [1, 2, 7]


def test_a_known_input_range_is_used_whatever_the_data_hold(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    model = converted(tiny_network, 0.1 * tiny_batches[0], tiny_spec, reduce_range=False)
    low, high = formats(model)["stem", "input"].range
    assert (low, high) == pytest.approx((-2, 2), abs=0.02)


def test_batch_norm_behind_a_convolution_that_others_read_stays() -> None:
    """torchao would fold it, and so change what the others read."""
    network, inputs = Classifier(PreActivation()), torch.randn(32, 3, 8, 8)
    settle_batch_norm(network, inputs)
    model = converted(network.eval(), inputs)
    assert decibels(network, model, inputs) > 30
    assert "features.0.norm1" in dict(TorchaoCalibrator().describe(model).unquantized)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(12, 4)

    def forward(self, image: Tensor, meta: Tensor) -> Any:
        features = torch.relu(self.conv(image)).mean((2, 3))
        return {"logits": self.head(torch.cat([features, meta], 1)), "parts": [features, (meta * 2,)]}


class InOneDictionary(Named):
    def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return super().forward(batch["image"], batch["meta"])


@pytest.mark.parametrize("call", ["keywords", "positional", "dictionary"])
def test_several_inputs_and_nested_outputs(call: Any, tmp_path: Any) -> None:
    network = (InOneDictionary if call == "dictionary" else Named)().eval()
    spec = NetworkSpec({"image": InputSpec((3, 8, 8)), "meta": InputSpec((4,))}, call=call)
    data = {"image": torch.randn(8, 3, 8, 8), "meta": torch.randn(8, 4)}
    run = dfq.run_quantization(network, [data], calibrator="torchao", spec=spec, output=tmp_path)
    assert not run.rejected
    turned = {"meta": data["meta"], "image": data["image"]}
    for model in (run.model, dfq.load_quantized(tmp_path)):
        returned = spec.run(model, turned)
        assert list(returned) == ["logits", "parts"]
        assert torch.equal(returned["parts"][1][0], 2 * data["meta"])


def test_kept_submodules_stay_in_float(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    model = converted(tiny_network, tiny_batches[0], tiny_spec, keep_float=("conv",))
    coverage = TorchaoCalibrator().describe(model)
    assert "conv" not in {tensor.name for tensor in coverage.quantized if tensor.role == "weight"}
    assert dict(coverage.unquantized)["conv"] == "left out by the option keep_float"
    with pytest.raises(UsageError, match="has no 'convs'"):
        converted(tiny_network, tiny_batches[0], tiny_spec, keep_float=("convs",))


def test_a_quantizer_of_the_users_own(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    pt2e_quantizers.SEEN.clear()
    converted(tiny_network, tiny_batches[0], tiny_spec, quantizer="pt2e_quantizers:recorded")
    assert pt2e_quantizers.SEEN == [{"is_qat": False, "reduce_range": False}]
    options = TorchaoOptions(quantizer="pt2e_quantizers:of_any_width", reduce_range=True)
    TorchaoCalibrator(options).prepare(tiny_network, tiny_spec, Recipe(4, 6), training=True)
    assert pt2e_quantizers.SEEN[1:] == [
        {"weight_bits": 4, "activation_bits": 6},
        {"is_qat": True, "reduce_range": True},
    ]


def test_the_arm_quantizer(tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]) -> None:
    model = converted(tiny_network, tiny_batches[0], tiny_spec, quantizer="arm")
    assert {name for name, role in formats(model) if role == "weight"} >= {"stem", "conv"}


@pytest.mark.parametrize(
    ("options", "recipe", "error", "text"),
    [
        ({}, Recipe(4, 8), UsageError, "to 8 bits, got w4a8. Choose w8a8"),
        (
            {"quantizer": "x68"},
            W8A8,
            UsageError,
            "must be one of x86, arm, xnnpack, openvino, or package.module:factory",
        ),
        ({"quantizer": "no_such:thing"}, W8A8, UsageError, "'no_such:thing' cannot be imported"),
        ({"quantizer": "pt2e_quantizers:nothing"}, W8A8, UsageError, "has no function 'nothing'"),
        ({"quantizer": "pt2e_quantizers:not_a_quantizer"}, W8A8, UsageError, "returned a int"),
        ({"quantizer": "pt2e_quantizers:without_arguments"}, W8A8, UsageError, "cannot be made with is_qat=False"),
        ({"quantizer": "arm", "reduce_range": True}, W8A8, UsageError, "'arm' has no reduced range"),
    ],
)
def test_unusable_settings_are_refused(
    options: dict[str, Any], recipe: Recipe, error: type[Exception], text: str, tiny_network: nn.Module
) -> None:
    with pytest.raises(error, match=text):
        TorchaoCalibrator(TorchaoOptions(**options)).prepare(tiny_network, IMAGE, recipe)


@pytest.mark.parametrize(("name", "package"), [("xnnpack", "executorch"), ("openvino", "nncf")])
def test_a_missing_framework_of_a_quantizer_is_said(name: str, package: str, tiny_network: nn.Module) -> None:
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(PluginError, match=f"pip install {package}"):
            TorchaoCalibrator(TorchaoOptions(quantizer=name)).prepare(tiny_network, IMAGE, W8A8)
    else:
        pytest.skip(f"{package} is installed")


def test_nothing_quantized_is_an_error(tiny_network: nn.Module, tiny_batches: list[Tensor]) -> None:
    with pytest.raises(ModelError, match="quantized nothing in this model"):
        converted(tiny_network, tiny_batches[0], quantizer="pt2e_quantizers:of_nothing")


def test_what_depends_on_values_is_refused_with_the_line() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(2 * inputs if inputs.sum() > 0 else inputs)

    with pytest.raises(ModelError, match=r"test_calibrator\.py.*torch\.export has no place"):
        TorchaoCalibrator().prepare(Gated(), InputSpec((4,)), W8A8)


def test_an_error_of_the_quantizer_names_the_way_round(
    tiny_network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_model: Any) -> None:
        raise ValueError("no such pattern")

    def broken(**_settings: Any) -> Any:
        quantizer = pt2e_quantizers.recorded(is_qat=False, reduce_range=False)
        monkeypatch.setattr(quantizer, "annotate", fail)
        return quantizer

    monkeypatch.setattr(pt2e_quantizers, "recorded_broken", broken, raising=False)
    options = TorchaoOptions(quantizer="pt2e_quantizers:recorded_broken")
    with pytest.raises(ModelError, match=r"torchao cannot prepare .*no such pattern.*another quantizer"):
        TorchaoCalibrator(options).prepare(tiny_network, IMAGE, W8A8)


def test_reduced_ranges_follow_the_processor(monkeypatch: pytest.MonkeyPatch, tiny_network: nn.Module) -> None:
    spans: Callable[[Any], set[int]] = lambda model: {  # noqa: E731
        module.quant_max for module in model.modules() if getattr(module, "dtype", None) is torch.uint8
    }
    for lacks, highest in ((True, 127), (False, 255)):
        monkeypatch.setattr("dfq_torchao.quantizers.saturates_pairs", lambda lacks=lacks: lacks)
        assert spans(TorchaoCalibrator().prepare(tiny_network, IMAGE, W8A8)) == {highest}
