"""The examples of docs/how-to/modelopt.md run as they stand there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dfq_modelopt.framework import quant_nn, quiet
from dfq_modelopt.notices import NOTICES
from dfq_plugins.quantization.notices import Notice, silenced
from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "how-to" / "modelopt.md"
SYNTHESIZE = "num_samples=256"
OF_MODELOPT = (
    *NOTICES,
    Notice("Could not identify the device for TensorQuantizer states"),
    Notice("Cannot find transformers package"),
)


def run_example(heading: str, names: dict[str, Any]) -> dict[str, Any]:
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    with silenced(OF_MODELOPT), quiet():
        exec(block[1].replace(SYNTHESIZE, 'num_samples=96, generator="gaussian"'), names)  # noqa: S102  (our own page)
    return names


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_example("In one call", {})
    assert names["run"].agreement > 0.9
    run_example("Load it back", names)
    assert torch.equal(names["logits"].argmax(1), names["run"].model(names["data"].inputs(16)).argmax(1))
    run_example("ModelOpt's own checkpoint", names)
    inputs = names["data"].inputs(16)
    assert torch.equal(names["restored"](inputs), names["quantized"](inputs))
    run_example("In your own code", names)
    assert any(isinstance(module, quant_nn.TensorQuantizer) for module in names["model"].modules())
    assert not any(isinstance(module, quant_nn.TensorQuantizer) for module in names["network"].modules())


@pytest.mark.slow
def test_fine_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tuned = run_example("Fine-tune", {})["tuned"]
    assert (tmp_path / "finetuned" / "model.modelopt.onnx").is_file()
    assert tuned.history[-1].held_out_loss < tuned.history[0].held_out_loss
