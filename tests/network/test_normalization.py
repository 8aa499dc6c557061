"""A normalization that cannot be right is said, with the figure that gives it away."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import dfq_plugins as dfq
from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.network.normalization import NormalizationWarning, impossible, outside, unlikely
from dfq_plugins.types import InputSpec, NetworkSpec

BYTES = InputSpec((3, 8, 8), (127.5,) * 3, (64.0,) * 3, (0.0, 1.0), 4)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (BYTES, True),
        (InputSpec((2, 4), (0.5, -0.1), (0.2, 0.2), (0.0, 1.0)), True),
        (NetworkSpec({"a": InputSpec((3,)), "b": InputSpec((1,), (3.0,), (1.0,), (0.0, 1.0))}), True),
        (InputSpec((1, 8), (0.0,), (1.0,), (0.0, 1.0)), False),
        (InputSpec((1, 8), (127.5,), (127.5,), (0.0, 255.0)), False),
        (InputSpec((1, 8), (127.5,), (64.0,)), False),
    ],
)
def test_a_mean_outside_the_range(spec: InputSpec, said: bool) -> None:
    assert bool(impossible(spec)) == said


@pytest.mark.parametrize(
    ("clamped", "divergence", "said"),
    [
        (0.72, 0.19, True),
        (0.91, 7.5, True),
        (0.8, 0.004, False),
        (0.1, 2.0, False),
        (None, 9.0, False),
        (0.9, None, False),
    ],
)
def test_values_at_the_clamp_count_together_with_the_divergence(
    clamped: float | None, divergence: float | None, said: bool
) -> None:
    assert bool(unlikely(clamped, divergence)) == said


def test_data_that_exceed_the_range() -> None:
    spec = InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0))
    data = torch.rand(8, 3, 8, 8) * 4 - 2
    assert outside([data], spec) == ""
    assert "of the values are outside the network inputs' range of -2 to 2" in outside([data * 255], spec)


def test_synthesis_inspection_and_quantization_say_it(tiny_network: nn.Module) -> None:
    wrong = InputSpec((1, 8, 8), None, None, (0.0, 1.0), 10)  # the mean and std were forgotten
    network = digits_network()
    with pytest.warns(NormalizationWarning, match=r"looks wrong: \d\d% of the values are at the edge"):
        data = dfq.synthesize(network, wrong, num_samples=8, options={"iterations": 30})
    assert "The normalization looks wrong: " in dfq.inspect(data, network).reason
    with pytest.warns(NormalizationWarning, match="looks wrong"):
        dfq.quantize(network, data, calibrator="pytorch-quantization")
    with pytest.warns(NormalizationWarning, match=r"the mean \(127.5, 127.5, 127.5\) is outside the value range"):
        dfq.synthesize(tiny_network, BYTES, generator="gaussian", num_samples=4)


def test_a_right_one_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormalizationWarning)
        data = dfq.synthesize(digits_network(), DIGITS_SPEC, num_samples=8, options={"iterations": 30})
        dfq.quantize(digits_network(), data, calibrator="pytorch-quantization")
