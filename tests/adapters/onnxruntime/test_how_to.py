"""The examples of docs/how-to/onnxruntime.md run as they stand there, and its table says what the code says."""

from __future__ import annotations

import dataclasses
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch

from dfq_onnxruntime.framework import quiet_tools
from dfq_onnxruntime.options import OnnxRuntimeOptions
from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PAGE = (DOCS / "how-to" / "onnxruntime.md").read_text(encoding="utf-8")


def example(heading: str) -> str:
    """Return the Python block under a heading of the page, on quickly made data."""
    block = re.search(r"```python\n(.*?)```", PAGE.split(f"## {heading}\n")[1], re.DOTALL)
    assert block is not None
    return block[1].replace("num_samples=256", 'num_samples=48, generator="gaussian"')


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example("In one call"), names)  # noqa: S102  (our own page)
    assert "InferenceSession" in capsys.readouterr().out
    exec(example("Load it back"), names)  # noqa: S102
    assert torch.equal(names["logits"], names["run"].model(names["data"].inputs(16)))
    with warnings.catch_warnings(), quiet_tools():
        warnings.simplefilter("ignore")  # torch's exporter and ONNX Runtime's advice
        exec(example("In your own code"), names)  # noqa: S102
    assert (tmp_path / "int8.onnx").is_file()


def test_the_table_lists_every_option() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.split("## Options\n")[1].split("## Figures")[0], re.MULTILINE)
    assert listed == [field.name for field in dataclasses.fields(OnnxRuntimeOptions)]
