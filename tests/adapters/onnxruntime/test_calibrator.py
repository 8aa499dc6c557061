"""The calibrator: its contract, number formats, methods and options."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch
from onnxruntime.quantization import QuantType
from torch import nn

import dfq_plugins as dfq
from dfq_onnxruntime.calibrator import OnnxRuntimeCalibrator
from dfq_onnxruntime.formats import types_for
from dfq_onnxruntime.options import OnnxRuntimeOptions
from dfq_onnxruntime.saturation import reduces_range
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.testing import CalibratorContract
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from dfq_plugins.quantization.result import QuantizationRun

SPEC = InputSpec((3, 8, 8), value_range=(-2.0, 2.0), num_classes=4)


class TestOnnxRuntime(CalibratorContract):
    @pytest.fixture
    def calibrator(self) -> OnnxRuntimeCalibrator:
        return OnnxRuntimeCalibrator(OnnxRuntimeOptions())


@pytest.fixture
def samples() -> torch.Tensor:
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


def quantize(network: nn.Module, samples: torch.Tensor, **settings: object) -> QuantizationRun:
    recipe = settings.pop("recipe", "w8a8")
    return dfq.run_quantization(network, samples, calibrator="onnxruntime", recipe=recipe, spec=SPEC, options=settings)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "distribution"])
def test_every_method_quantizes_every_layer(
    tiny_network: nn.Module,
    samples: torch.Tensor,
    method: str,
    symmetric: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = list(logging.root.handlers)
    run = quantize(tiny_network, samples, method=method, symmetric=symmetric, reduce_range=True)
    assert run.output_agreement[0].decibels > (12 if method == "entropy" else 22)
    assert {"stem", "conv", "linear"} <= set(run.coverage.layers)
    assert run.coverage.unquantized == (("/ReduceMean", "ReduceMean: ONNX Runtime computes it in float"),)
    inputs = [run.coverage.format_of(name, "input") for name in ("stem", "conv", "linear")]
    assert all(form is not None and form.symmetric == symmetric for form in inputs[:1])
    assert capsys.readouterr().out == ""
    assert logging.root.handlers == handlers


@pytest.mark.parametrize(
    ("recipe", "weight", "activation"), [("w4a8", 4, 8), ("w8a16", 8, 16), ("w4a16", 4, 16), ("w16a16", 16, 16)]
)
def test_other_bit_widths(
    tiny_network: nn.Module, samples: torch.Tensor, recipe: str, weight: int, activation: int
) -> None:
    run = quantize(tiny_network, samples, recipe=recipe)
    forms = run.coverage.format_of("conv", "weight"), run.coverage.format_of("conv", "input")
    assert [form and form.bits for form in forms] == [weight, activation]
    assert run.output_agreement[0].decibels > 10


@pytest.mark.parametrize("recipe", ["w4a4", "w8a4", "w2a8", "w8a32", "binary"])
def test_other_recipes_are_refused(tiny_network: nn.Module, samples: torch.Tensor, recipe: str) -> None:
    with pytest.raises(UsageError, match=r"weights of 4, 8 or 16 bits and activations of 8 or 16 bits, got \d+ and"):
        quantize(tiny_network, samples, recipe=recipe)


@pytest.mark.parametrize(
    ("machine", "vnni", "reduced"), [("x86_64", False, True), ("x86_64", True, False), ("aarch64", False, False)]
)
def test_the_range_is_reduced_where_kernels_clip(
    machine: str, vnni: bool, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert reduces_range(OnnxRuntimeOptions(), Recipe(8, 8)) == reduced
    assert not reduces_range(OnnxRuntimeOptions(), Recipe(4, 8))
    assert reduces_range(OnnxRuntimeOptions(reduce_range=True), Recipe(8, 8))


@pytest.mark.parametrize(
    ("machine", "settings", "kind"),
    [
        ("x86_64", {}, QuantType.QUInt8),
        ("x86_64", {"symmetric": True}, QuantType.QInt8),
        ("aarch64", {}, QuantType.QInt8),
        ("x86_64", {"activations": "int8"}, QuantType.QInt8),
    ],
)
def test_activations_are_what_kernels_are_fastest_with(
    machine: str, settings: dict[str, object], kind: QuantType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert types_for(Recipe(8, 8), OnnxRuntimeOptions(**settings)) == (kind, QuantType.QInt8)  # type: ignore[arg-type]


@pytest.mark.parametrize(("reduce_range", "bits"), [(True, 7), (False, 8)])
def test_a_reduced_range_is_reported(
    tiny_network: nn.Module, samples: torch.Tensor, reduce_range: bool, bits: int
) -> None:
    form = quantize(tiny_network, samples, reduce_range=reduce_range).coverage.format_of("conv", "weight")
    assert form is not None
    assert (form.bits, form.stored_bits, form.per_channel) == (bits, 8, True)


def test_the_input_has_the_range_of_the_specification(tiny_network: nn.Module, samples: torch.Tensor) -> None:
    form = quantize(tiny_network, samples * 0.1).coverage.format_of("stem", "input")
    assert form is not None
    assert form.range == pytest.approx((-2.0, 2.0), abs=0.02)


def test_outputs_get_room_unless_an_operator_limits_them(samples: torch.Tensor) -> None:
    def highest(network: nn.Module, margin: float) -> float:
        spec = InputSpec((3, 8, 8))
        run = dfq.run_quantization(
            network, samples, calibrator="onnxruntime", spec=spec, options={"output_margin": margin}
        )
        return float(run.model(samples * 10).abs().max())

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    assert highest(plain, 2.0) == pytest.approx(2 * highest(plain, 1.0), rel=0.02)
    limited = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Sigmoid()).eval()
    assert highest(limited, 2.0) <= 1.0


@pytest.mark.parametrize("given", ["conv", "/conv/Conv", "con*"])
def test_named_nodes_stay_in_float(tiny_network: nn.Module, samples: torch.Tensor, given: str) -> None:
    run = quantize(tiny_network, samples, float_nodes=(given,))
    assert ("conv", "Conv: left out by name") in run.coverage.unquantized
    assert "stem" in run.coverage.layers


def test_a_name_that_fits_nothing_is_refused(tiny_network: nn.Module, samples: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"nothing fits 'stemm'. Did you mean 'stem'\?"):
        quantize(tiny_network, samples, float_nodes=("stemm",))


def test_only_the_named_operators_are_quantized(tiny_network: nn.Module, samples: torch.Tensor) -> None:
    run = quantize(tiny_network, samples, operators=("Conv",))
    assert set(run.coverage.layers) == {"stem", "conv"}
    assert ("linear", "Gemm: ONNX Runtime computes it in float") in run.coverage.unquantized
    with pytest.raises(UsageError, match=r"does not quantize the operator 'conv'. Did you mean 'Conv'\?"):
        quantize(tiny_network, samples, operators=("conv",))


class _Erf(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.erf(inputs)


def test_a_network_without_a_quantized_operator_is_refused() -> None:
    with pytest.raises(ModelError, match=r"quantizes none of the operators of this network: Erf\. Build it from"):
        dfq.run_quantization(_Erf(), torch.randn(12, 7, 5), calibrator="onnxruntime")


def test_training_is_refused(tiny_network: nn.Module, samples: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"quantizes after training only: its files cannot be trained\. Fine-tune"):
        dfq.finetune(tiny_network, samples, calibrator="onnxruntime", spec=SPEC)


class _Masked(nn.Module):
    """Attention whose masked scores are minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores = self.query(inputs) @ self.key(inputs).transpose(1, 2)
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(mask, float("-inf")).softmax(-1) @ self.value(inputs)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_infinite_values_stay_in_float(method: str) -> None:
    torch.manual_seed(0)
    run = dfq.run_quantization(
        _Masked().eval(), torch.randn(20, 6, 8), calibrator="onnxruntime", options={"method": method}
    )
    assert ("/Softmax", "Softmax: reads or returns infinite values") in run.coverage.unquantized
    assert {"query", "key", "value"} <= set(run.coverage.layers)
    assert run.output_agreement[0].decibels > 20


def test_instance_norms_with_recorded_statistics(samples: torch.Tensor) -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    network(samples)
    assert quantize(network.eval(), samples).output_agreement[0].decibels > 20
