"""The page docs/how-to/torchao.md: its code runs, and its table lists the options there are."""

from __future__ import annotations

import dataclasses
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest
import torch

from dfq_plugins.host.registry import build_registry
from dfq_torchao.options import TorchaoOptions
from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "how-to" / "torchao.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # in a flow of their own, users see torch's notices
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [point for point in entry_points(group="dfq_plugins") if point.name in ("torchao", "builtin-generators")]
    for module in ("synthesis.run", "quantization.run", "quantization.finetune", "quantization.load"):
        monkeypatch.setattr(f"dfq_plugins.{module}.get_registry", lambda: build_registry(entry_points=mine))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - the page's own examples
    run, data, tuned = names["run"], names["data"], names["tuned"]
    assert run.agreement > 0.8  # type: ignore[attr-defined]
    assert tuned.agreement > 0.8  # type: ignore[attr-defined]
    expected = run.model(data.inputs(16))  # type: ignore[attr-defined]
    assert torch.equal(names["logits"], expected)  # type: ignore[arg-type]
    assert torch.equal(names["loaded_logits"], expected)  # type: ignore[arg-type]
    assert (tmp_path / "finetuned" / "model.exported.pt2").is_file()
    with torch.no_grad():
        own = names["converted"](data.inputs(64)).argmax(1)  # type: ignore[operator, attr-defined]
        same = own == names["model"](data.inputs(64)).argmax(1)  # type: ignore[operator, attr-defined]
    assert same.float().mean() > 0.8


def test_every_option_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert [row for row in rows if row not in ("x86", "arm", "xnnpack", "openvino")] == [
        field.name for field in dataclasses.fields(TorchaoOptions)
    ]
