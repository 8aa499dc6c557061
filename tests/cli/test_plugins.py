"""`dfq plugins`, over plugins in every state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from annotated_types import Gt
from click.testing import CliRunner

from dfq_plugins.cli import cli, plugins
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.host import registry as registry_module
from dfq_plugins.types import CalibratorEntry, GeneratorEntry, ProgressListenerEntry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class GanOptions:
    steps: Annotated[int, Gt(0)] = field(default=10, metadata={"help": "optimization steps"})
    compile: bool | None = None


@hookimpl
def dfq_generators() -> Iterable[GeneratorEntry]:
    yield GeneratorEntry("gan", "Images by a generative network", "fake:Gan", options=GanOptions)


@hookimpl
def dfq_calibrators() -> Iterable[CalibratorEntry]:
    yield CalibratorEntry("tpu", "Calibrates for TPUs", "fake:Tpu", requires=("no_tpu",), install="dfq-plugins[tpu]")


@hookimpl
def dfq_progress_listeners() -> Iterable[ProgressListenerEntry]:
    yield ProgressListenerEntry("quiet", "Hears and says nothing", "fake:Quiet")


@pytest.fixture(autouse=True)
def _three_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plugins that load and one that does not, built anew at each look-up as in a fresh process."""
    module = types.ModuleType("fake")
    for hook in (dfq_generators, dfq_calibrators, dfq_progress_listeners):
        setattr(module, hook.__name__, hook)
    monkeypatch.setitem(sys.modules, "fake", module)
    entry_points = [EntryPoint(name, name, "dfq_plugins") for name in ("fake", "no_such_module")]
    monkeypatch.setattr(
        plugins, "get_registry", lambda: registry_module.build_registry(entry_points=entry_points), raising=True
    )


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["plugins", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_list_names_kind_name_provider_version_and_state() -> None:
    result = run()
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["KIND", "NAME", "PROVIDER", "VERSION", "STATE"]
    assert ["generator", "gan", "module", "fake", "ready"] in lines
    assert ["calibrator", "tpu", "module", "fake", "unavailable"] in lines
    assert ["listener", "quiet", "module", "fake", "ready"] in lines
    assert ["plugin", "no_such_module", "module", "no_such_module", "broken"] in lines


def test_the_list_shows_options_the_line_that_mends_and_why_a_plugin_is_broken() -> None:
    result = run()
    assert "options: steps=10 compile=none\n" in result.stdout
    assert 'needs no_tpu: pip install "dfq-plugins[tpu]"\n' in result.stdout
    assert "ModuleNotFoundError: No module named 'no_such_module'\n" in result.stdout


def test_a_broken_plugin_is_warned_of_in_one_line_without_our_source() -> None:
    (line,) = run().stderr.splitlines()
    assert line.startswith("Warning: Set aside the broken plugin 'no_such_module' of module no_such_module: ")


def test_one_plugin_in_detail() -> None:
    result = run("gan")
    assert "tpu" not in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["steps", "int", ">", "0", "10", "optimization", "steps"] in rows
    assert ["compile", "bool", "or", "none", "none"] in rows
    assert "No options." in run("tpu").stdout


def test_a_broken_plugin_in_detail() -> None:
    assert "ModuleNotFoundError" in run("no_such_module").stdout


def test_an_unknown_plugin_exits_with_3_and_names_the_nearest() -> None:
    result = run("gam", code=3)
    assert "Error: No plugin is named 'gam'. Did you mean 'gan'? Known: gan, tpu, quiet." in result.stderr
    assert result.stdout == ""


def test_json() -> None:
    result = run("--json")
    listed = json.loads(result.stdout)
    assert listed["broken"] == [
        {
            "entry_point": "no_such_module",
            "provider": "module no_such_module",
            "version": "",
            "error": "ModuleNotFoundError: No module named 'no_such_module'",
        }
    ]
    gan, tpu, _quiet = listed["plugins"]
    assert gan["options"][0] == {"name": "steps", "type": "int > 0", "default": "10", "help": "optimization steps"}
    assert (tpu["state"], tpu["missing"], tpu["install"]) == (
        "unavailable",
        ["no_tpu"],
        'pip install "dfq-plugins[tpu]"',
    )


def test_output_into_a_pipe_has_no_color() -> None:
    assert "\x1b" not in run().stdout


def test_the_command_lists_a_distribution_on_disk(tmp_path: Path) -> None:
    info = tmp_path / "dfq_gan-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfq-gan\nVersion: 0.2\n")
    (info / "entry_points.txt").write_text("[dfq_plugins]\ngan = dfq_gan_plugin\n")
    (tmp_path / "dfq_gan_plugin.py").write_text(
        "from dfq_plugins import hookimpl\nfrom dfq_plugins.types import GeneratorEntry\n"
        "@hookimpl\ndef dfq_generators():\n    yield GeneratorEntry('gan', 'a generator', 'a:b')\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))
    completed = subprocess.run(
        [sys.executable, "-m", "dfq_plugins", "plugins", "gan", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    (gan,) = json.loads(completed.stdout)["plugins"]
    assert (gan["kind"], gan["provider"], gan["version"], gan["state"]) == ("generator", "dfq-gan", "0.2", "ready")
