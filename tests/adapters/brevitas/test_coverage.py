"""What the calibrator "brevitas" says of the tensors that it quantized, and what the command line prints of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import dfq_plugins
from dfq_plugins.cli.results import print_run
from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.testing.material import smooth_noise

if TYPE_CHECKING:
    from dfq_plugins.quantization.result import QuantizationRun


@pytest.fixture(scope="module")
def digits_run() -> QuantizationRun:
    return dfq_plugins.run_quantization(
        digits_network(), smooth_noise(DIGITS_SPEC), spec=DIGITS_SPEC, calibrator="brevitas", recipe="w4a4"
    )


def test_only_layers_with_weights_are_counted_as_such(
    digits_run: QuantizationRun, capsys: pytest.CaptureFixture[str]
) -> None:
    print_run(digits_run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Quantized by brevitas at w4a4: 6 layers."
    weights = [line for line in lines if "weights: " in line]
    assert all("weights: int4 per channel, symmetric; inputs: " in line for line in weights)
    assert sum(int(line.split()[0]) for line in weights) == 6
    assert not any("weights: float" in line for line in lines)
    activations = [line for line in lines if "x activations: " in line]
    assert sum(int(line.split()[0]) for line in activations) == 8


def test_ranges_are_those_of_the_quantizers(digits_run: QuantizationRun) -> None:
    tensors = [tensor for tensor in digits_run.coverage.quantized if tensor.role == "activation"]
    for tensor in tensors:
        quantizer = digits_run.model.get_submodule(tensor.name).act_quant  # type: ignore[union-attr]
        scale = quantizer.scale().item()  # type: ignore[union-attr, operator]
        levels = 2**tensor.format.bits
        low, high = (-levels / 2, levels / 2 - 1) if tensor.format.signed else (0, levels - 1)
        assert tensor.format.range == pytest.approx((low * scale, high * scale))
