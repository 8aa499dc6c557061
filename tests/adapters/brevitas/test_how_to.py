"""The page docs/how-to/brevitas.md: its code runs, and its table lists the options there are."""

from __future__ import annotations

import dataclasses
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dfq_brevitas.notices import NOTICES
from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.host.registry import build_registry
from dfq_plugins.quantization.notices import silenced
from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

PAGE = DOCS / "how-to" / "brevitas.md"


def agreement(network: nn.Module, model: nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        return (network(inputs).argmax(1) == model(inputs).argmax(1)).float().mean().item()


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [point for point in entry_points(group="dfq_plugins") if point.name in ("brevitas", "builtin-generators")]
    if len(mine) != 2:
        pytest.skip("the entry points are found only where dfq-plugins is installed")
    for module in ("synthesis.run", "quantization.run", "quantization.finetune", "quantization.load"):
        monkeypatch.setattr(f"dfq_plugins.{module}.get_registry", lambda: build_registry(entry_points=mine))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 10
    names: dict[str, Any] = {}
    with silenced(NOTICES):  # in a flow of their own, users see the framework's notices
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  (the page's own examples)
            if "load_quantized" in block:
                expected = names["run"].model(names["data"].inputs(16))
    run, data, network = names["run"], names["data"], names["network"]
    inputs = data.inputs(64)
    torch.testing.assert_close(names["logits"], expected)
    assert names["tuned"].agreement >= names["tuned"].agreement_before
    assert {path.name for path in (tmp_path / "finetuned").glob("*.onnx")} == {"model.qonnx.onnx", "model.qcdq.onnx"}
    assert {path.name for path in (tmp_path / "binary").glob("*.onnx")} == {"model.qonnx.onnx"}
    ends = [name for name, why in names["binary"].coverage.unquantized if "the first and the last layer" in why]
    assert len(ends) == 2
    assert (tmp_path / "for_finn" / "model.qonnx.onnx").is_file()
    assert names["loss"].isfinite()
    assert not any(module._forward_pre_hooks for module in names["model"].modules())
    assert run.agreement > 0.6  # 4 bits, on images made in 20 iterations; chance is 0.1
    assert {path.name for path in (tmp_path / "quantized").glob("*.onnx")} == {"model.qonnx.onnx", "model.qcdq.onnx"}
    assert agreement(network, names["model"], inputs) > 0.9
    assert (tmp_path / "mine.qonnx.onnx").is_file()
    assert names["outputs"].shape == (16, 10)


def test_every_option_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == [field.name for field in dataclasses.fields(BrevitasOptions)]
