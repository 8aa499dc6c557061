"""`dfq plugins --check`, over plugins that keep their contract and that do not."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from contract_plugins import Greedy, Rounding, Uniform
from dfq_plugins.cli import cli, plugins
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.host import registry as registry_module
from dfq_plugins.types import CalibratorEntry, GeneratorEntry, ProgressListenerEntry

if TYPE_CHECKING:
    from collections.abc import Iterable


@hookimpl
def dfq_generators() -> Iterable[GeneratorEntry]:
    for name in ("uniform", "greedy", "both"):
        yield GeneratorEntry(name, "Noise", f"checked:{name}")


@hookimpl
def dfq_calibrators() -> Iterable[CalibratorEntry]:
    yield CalibratorEntry("both", "Rounds", "checked:rounding")
    yield CalibratorEntry("tpu", "Calibrates for TPUs", "checked:tpu", requires=("no_tpu",), install="dfq-tpu")


@hookimpl
def dfq_progress_listeners() -> Iterable[ProgressListenerEntry]:
    yield ProgressListenerEntry("quiet", "Hears and says nothing", "checked:quiet")


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("checked")
    for hook in (dfq_generators, dfq_calibrators, dfq_progress_listeners):
        setattr(module, hook.__name__, hook)
    for name, kind in {"uniform": Uniform, "greedy": Greedy, "both": Uniform, "rounding": Rounding}.items():
        setattr(module, name, lambda _options, kind=kind: kind())
    monkeypatch.setitem(sys.modules, "checked", module)
    entry_points = [EntryPoint("checked", "checked", "dfq_plugins")]
    registry = registry_module.build_registry(entry_points=entry_points)
    monkeypatch.setattr(plugins, "get_registry", lambda: registry)


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["plugins", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_sound_plugin_passes_every_test() -> None:
    lines = run("uniform", "--check").stdout.splitlines()
    assert lines[-1] == "generator 'uniform': 16 of 16 tests passed."
    assert "passed  same seed same values" in lines


def test_a_broken_plugin_exits_with_8_and_says_what_fails() -> None:
    result = run("greedy", "--check", code=8)
    lines = result.stdout.splitlines()
    where = lines.index("FAILED  no batch is larger than asked for")
    assert lines[where + 1] == "        Batches must have at most batch_size=4 samples, got [10]. Split larger batches."
    assert result.stderr == (
        "Error: 'greedy' must pass its contract, but fails 1 of its tests. Fix the plugin and check it again; "
        "dfq_plugins.testing describes each test.\n"
    )


@pytest.mark.slow
def test_one_name_of_two_kinds_is_checked_as_both() -> None:
    contracts = json.loads(run("both", "--check", "--json").stdout)["contracts"]
    assert [(contract["kind"], contract["failed"]) for contract in contracts] == [("generator", {}), ("calibrator", {})]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--check"], 2, "--check needs the NAME of a generator or calibrator: dfq plugins --check NAME."),
        (["unifrom", "--check"], 3, "is named 'unifrom'. Did you mean 'uniform'? Known: uniform, greedy, both"),
        (["quiet", "--check"], 3, "'quiet' is a listener, but only generators and calibrators have a contract."),
        (["tpu", "--check"], 3, "Calibrator 'tpu' needs no_tpu (not installed). Run: pip install \"dfq-tpu\""),
        (["uniform", "--check", "-O", "a=1"], 2, "Unknown option 'a' of generator 'uniform'."),
        (["uniform", "-O", "a=1"], 2, "Here --option only applies with --check NAME."),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments, code=code)
    assert message in result.stderr
    assert result.stdout == ""


def test_without_pytest_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "pytest" else find(name))
    message = 'Contract tests need pytest, which is not installed. Run: pip install "dfq-plugins[test]"'
    assert message in run("uniform", "--check", code=3).stderr
