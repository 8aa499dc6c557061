"""What the calibrator "brevitas" refuses, and what it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_brevitas import graph
from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_brevitas.framework import brevitas_config
from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(inputs)
        if hidden.sum() > 0:
            return hidden
        return -hidden


def test_untraceable_model_names_the_line_and_the_way_round(tiny_spec: InputSpec) -> None:
    network, cat = Branching(), torch.cat
    with pytest.raises(ModelError, match="must not branch or loop on the values of its input") as caught:
        BrevitasCalibrator().prepare(network, tiny_spec, Recipe(8, 8))
    assert "test_errors.py:" in str(caught.value)
    assert "`if hidden.sum() > 0:`" in str(caught.value)
    assert "pytorch-quantization" in str(caught.value)
    assert torch.cat is cat
    assert network.training


@pytest.mark.parametrize("recipe", ["w9a8", "w8a1", "w8a16", "w1a1"])
def test_unsupported_widths(tiny_network: nn.Module, tiny_spec: InputSpec, recipe: str) -> None:
    told = f"2 to 8 bits or 32 (float), got {recipe}. Choose e.g. w8a8, w4a4, or w1a32 for binary weights."
    with pytest.raises(UsageError, match=re.escape(told)):
        BrevitasCalibrator().prepare(tiny_network, tiny_spec, Recipe.parse(recipe))


def test_no_training_at_other_widths_either(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    with pytest.raises(UsageError, match="brevitas takes weights of 1 to 8 bits and activations of 2 to 8 bits or 32"):
        BrevitasCalibrator().prepare(tiny_network, tiny_spec, Recipe(9, 8), training=True)


@pytest.mark.parametrize("option", ["gptq", "learned_round"])
def test_rounding_that_binary_weights_have_not(option: str, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    worker = BrevitasCalibrator(BrevitasOptions(**{option: True}))
    with pytest.raises(
        UsageError, match=f"{option} chooses between neighboring integers, but binary weights have only"
    ):
        worker.prepare(tiny_network, tiny_spec, Recipe(1, 32))


def test_nothing_between_the_first_and_the_last_layer(tiny_spec: InputSpec) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    told = "Sequential has no layer between its first and its last, and these two keep float weights"
    with pytest.raises(ModelError, match=f"{told}. Set first_and_last=quantized"):
        BrevitasCalibrator().prepare(network, tiny_spec, Recipe(1, 32))
    options = BrevitasOptions(first_and_last="quantized")
    assert BrevitasCalibrator(options).prepare(network, tiny_spec, Recipe(1, 32))


def test_nothing_to_quantize(tiny_spec: InputSpec) -> None:
    with pytest.raises(ModelError, match=r"Brevitas found no layer to quantize in Sequential \(it contains: ReLU\)"):
        BrevitasCalibrator().prepare(nn.Sequential(nn.ReLU()), tiny_spec, Recipe(8, 8))


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], DataError, "Calibration needs at least one batch, got none"),
        ([torch.zeros(2, 1, 8, 8)], DataError, r"must have the shape \(samples, 3, 8, 8\), got \(2, 1, 8, 8\)"),
        ([torch.full((2, 3, 8, 8), float("nan"))], DataError, "a batch holds NaN or infinity"),
    ],
    ids=["none", "shape", "nan"],
)
def test_unusable_batches(
    tiny_network: nn.Module, tiny_spec: InputSpec, batches: Iterable[torch.Tensor], error: type[Exception], message: str
) -> None:
    calibrator = BrevitasCalibrator()
    prepared = calibrator.prepare(tiny_network, tiny_spec, Recipe(8, 8))
    with pytest.raises(error, match=message):
        calibrator.calibrate(prepared, batches)


def test_steps_out_of_order(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    calibrator = BrevitasCalibrator()
    with pytest.raises(UsageError, match=r"Call calibrate\(\) first"):
        calibrator.convert(calibrator.prepare(tiny_network, tiny_spec, Recipe(8, 8)))
    with pytest.raises(UsageError, match=r"models that its own prepare\(\) returned, got TinyNetwork"):
        calibrator.calibrate(tiny_network, [])


def test_a_failure_inside_brevitas_is_explained(
    tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "quantize", torch.zeros)  # fails in torch's own code, as Brevitas may in its own
    message = r"Brevitas cannot prepare this network \(TypeError: .*\)\. Rewrite that part with tensor operations"
    with pytest.raises(ModelError, match=message):
        BrevitasCalibrator().prepare(tiny_network, tiny_spec, Recipe(8, 8))


def test_a_failure_leaves_brevitas_settings(
    tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_model: nn.Module, **_maps: object) -> None:
        brevitas_config.IGNORE_MISSING_KEYS = True  # as Brevitas's own quantize does on its way
        raise KeyError("scale")

    monkeypatch.setattr(brevitas_config, "IGNORE_MISSING_KEYS", False)
    monkeypatch.setattr(graph, "quantize", fail)
    with pytest.raises(ModelError, match="'scale'"):
        BrevitasCalibrator().prepare(tiny_network, tiny_spec, Recipe(8, 8))
    assert not brevitas_config.IGNORE_MISSING_KEYS
