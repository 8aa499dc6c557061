"""The examples of docs/how-to/pytorch-quantization.md run as they stand there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import dfq_plugins
from dfq_plugins import InputSpec, Recipe, synthesize
from dfq_plugins.quantization.notices import silenced
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_pytorch_quantization.framework import quant_nn
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path


PAGE = DOCS / "how-to" / "pytorch-quantization.md"
SYNTHESIZE = "num_samples=256"


def run_example(heading: str) -> dict[str, Any]:
    """Run the Python block under a heading of the page, on quickly made data."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    assert block[1].count(SYNTHESIZE) == 1
    names: dict[str, Any] = {}
    with silenced(NOTICES, logger=LOGGER):
        exec(block[1].replace(SYNTHESIZE, 'num_samples=96, generator="gaussian"'), names)  # noqa: S102  (our own page)
    return names


def agreement(network: nn.Module, model: nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        return (network(inputs).argmax(1) == model(inputs).argmax(1)).float().mean().item()


def test_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_example("In one call")
    section = PAGE.read_text(encoding="utf-8").split("## Load it back\n")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    exec(block[1], names)  # noqa: S102  (our own page)
    assert torch.equal(names["logits"].argmax(1), names["run"].model(names["data"].inputs(16)).argmax(1))
    assert (tmp_path / "quantized" / "model_qdq.onnx").is_file()
    assert "top-1 agreement 100.0%" in capsys.readouterr().out
    assert names["run"].agreement > 0.9


@pytest.mark.slow
def test_fine_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tuned = run_example("Fine-tune")["tuned"]
    assert (tmp_path / "finetuned" / "model_qdq.onnx").is_file()
    assert tuned.history[-1].held_out_loss < tuned.history[0].held_out_loss


def test_own_training_loop(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    """The loop of the page, on a calibrated model of another flow."""
    inputs = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    calibrator = PytorchQuantizationCalibrator()
    model = calibrator.prepare(tiny_network, tiny_spec, Recipe(4, 4), training=True)
    with silenced(NOTICES, logger=LOGGER):
        calibrator.calibrate(model, [inputs])
    section = PAGE.read_text(encoding="utf-8").split("## Fine-tune\n")[1]
    block = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[1]
    data = synthesize(tiny_network, tiny_spec, generator="gaussian", num_samples=64)
    names: dict[str, Any] = {"dfq": dfq_plugins, "network": tiny_network, "model": model, "data": data}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exec(block, names)  # noqa: S102  (our own page)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"stem.weight", "conv.weight", "linear.weight"} <= moved
    assert not any("running" in name or "amax" in name for name in moved)
    assert names["loss"].isfinite()


@pytest.mark.slow
def test_own_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (quant_nn.QuantConv2d, quant_nn.QuantLinear, quant_nn.QuantAdaptiveAvgPool2d):
        monkeypatch.setattr(layer, "default_quant_desc_input", layer.default_quant_desc_input)
    with torch.random.fork_rng(devices=[]):
        names = run_example("In your own code")
    assert nn.Conv2d is not quant_nn.QuantConv2d
    assert len(names["quantizers"]) == 13  # the inputs of five convolutions, a linear layer and a pooling; six weights
    assert all(quantizer.amax is not None and not quantizer._if_calib for quantizer in names["quantizers"])
    inputs = torch.cat(list(names["data"].batches()))
    assert agreement(names["network"], names["model"], inputs) > 0.9
