"""What the plugin "brevitas" registers, and that its light modules stay light."""

from __future__ import annotations

import subprocess
import sys

from dfq_brevitas.options import BrevitasOptions
from dfq_brevitas.plugin import dfq_calibrators
from dfq_plugins.host.options import describe_options, parse_options
from places import ROOT


def test_entry() -> None:
    (entry,) = dfq_calibrators()
    assert (entry.name, entry.install) == ("brevitas", "dfq-plugins[brevitas]")
    assert "brevitas" in entry.requires
    assert entry.options is BrevitasOptions


def test_options_are_listed_and_read_from_text() -> None:
    rows = {row.name: row for row in describe_options(BrevitasOptions)}
    assert all(row.help for row in rows.values())
    options = parse_options(BrevitasOptions, {"percentile": "99.5", "gptq": "true", "weight_scale": "mse"})
    assert (options.percentile, options.gptq, options.weight_scale) == (99.5, True, "mse")


def test_plugin_imports_neither_torch_nor_brevitas() -> None:
    code = "import sys, dfq_brevitas.plugin; print([m for m in ('torch', 'brevitas', 'onnx') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
    )
    assert done.stdout.strip() == "[]"
