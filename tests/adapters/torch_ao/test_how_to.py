"""The page docs/how-to/torch-ao.md: its code runs, and its table lists the options there are."""

from __future__ import annotations

import dataclasses
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq

from dfq_plugins.host.registry import build_registry
from dfq_torch_ao.options import TorchAoOptions
from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "how-to" / "torch-ao.md"


# In a flow of their own, users see torch's notices; the adapter silences them only in its own calls.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.filterwarnings(r"ignore:`torch.jit.load` is deprecated")
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [point for point in entry_points(group="dfq_plugins") if point.name in ("torch-ao", "builtin-generators")]
    for module in ("synthesis.run", "quantization.run", "quantization.finetune", "quantization.load"):
        monkeypatch.setattr(f"dfq_plugins.{module}.get_registry", lambda: build_registry(entry_points=mine))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - the page's own examples
    run, data = names["run"], names["data"]
    assert run.agreement > 0.8  # type: ignore[attr-defined]
    assert torch.equal(names["logits"], run.model(data.inputs(16)))  # type: ignore[attr-defined, arg-type]
    assert torch.equal(names["loaded_logits"], names["logits"])  # type: ignore[arg-type]
    tuned, network, trained = names["tuned"], names["model"], names["trained"]
    assert tuned.agreement > 0.8  # type: ignore[attr-defined]
    assert (tmp_path / "finetuned" / "model.torchscript.pt").is_file()
    inputs = data.inputs(64)  # type: ignore[attr-defined]
    with torch.no_grad():
        same = network(inputs).argmax(1) == trained(inputs).argmax(1)  # type: ignore[operator]
    assert same.float().mean() > 0.8
    for model in (names["converted"], trained):
        assert type(getattr(model.stem, "0")) is nniq.ConvReLU2d  # type: ignore[attr-defined]


def test_every_option_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    assert rows == [field.name for field in dataclasses.fields(TorchAoOptions)]
