"""The command group: help, versions, exit codes, messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

import dfq_plugins
from dfq_plugins import errors
from dfq_plugins.cli import cli, progress
from dfq_plugins.cli.versions import found_versions
from dfq_plugins.types import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def demo_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Put an error into the place of the demo run."""

    def replace(error: BaseException) -> None:
        def run_demo(*_: object) -> None:
            raise error

        module = types.ModuleType("dfq_plugins.demo.run")
        module.run_demo = run_demo  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "dfq_plugins.demo.run", module)

    return replace


def test_help_names_every_command_completion_and_exit_codes() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for expected in ("demo", "plugins", "synthesize", "quantize", "similarity", "_DFQ_COMPLETE=zsh_source", "130"):
        assert expected in output


@pytest.mark.parametrize("name", ["demo", "plugins", "synthesize", "quantize", "similarity"])
def test_every_command_has_help_and_json(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


def test_version_names_python_and_the_frameworks_found() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert f"dfq-plugins {dfq_plugins.__version__}" in result.output
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in result.output


def test_found_versions_leaves_out_what_is_not_installed_and_what_is_for_tests() -> None:
    requirements = ["torch>=2.11", 'brevitas[export]>=0.12; extra == "no"', "absent-package", 'pytest; extra == "test"']
    assert set(found_versions(requirements)) - {"brevitas"} == {"torch"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantze"], "No such command 'quantze'. Did you mean 'quantize'?"),
        (["--wrong"], "No such option"),
        (["quantize", "m:f", "data"], "--calibrator"),
        (["quantize", "m:f", "data", "--calibrator", "x", "--recipe", "int8"], "A recipe is w<bits>a<bits>"),
        (["synthesize", "m:f"], "--output"),
        (["synthesize", "m:f", "-o", "x", "--shape", "3,a"], "'3,a' is not a comma-separated list of int numbers"),
        (["synthesize", "m:f", "-o", "x", "-O", "iterations"], "'iterations' is not of the form KEY=VALUE."),
        (
            ["synthesize", "m:f", "-o", "x", "-O", "iterations=0"],
            "Option 'iterations' of generator 'bns' cannot be '0'",
        ),
        (["synthesize", "m:f", "-o", "x", "-n", "0"], "0 is not in the range x>=1"),
        (["synthesize", "m:f", "-o", "x", "-O", "a=1", "-O", "a=2"], "'a' is given twice."),
        (["synthesize", "m:f", "-o", "x", "--extend", "3", "-n", "5"], "--extend N adds N samples"),
        (["synthesize", "resnet18", "-o", "x"], "A model must be torchvision:NAME"),
        (["synthesize", "m:f", "-o", "x", "--threads", "0"], "--threads"),
        (["similarity", "m:f"], "SOURCES"),
        (["similarity", "m:f", "a", "b", "a"], "Each source may be given only once, got 'a' more than once."),
    ],
)
def test_bad_usage_exits_with_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DfqError, 1),
        (errors.UsageError, 2),
        (errors.PluginError, 3),
        (errors.ModelError, 4),
        (errors.DataError, 5),
        (errors.DivergedError, 6),
        (errors.ArtifactError, 7),
        (errors.ContractError, 8),
    ],
)
def test_each_error_has_its_exit_code_message_and_notes(
    demo_that: Callable[[BaseException], None], error: type[errors.DfqError], code: int
) -> None:
    raised = error("The rule, the value, the next step.")
    raised.add_note("in generator 'gan' from dfq-gan 0.2")
    demo_that(raised)
    result = CliRunner().invoke(cli, ["demo", "--json"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "Error: The rule, the value, the next step.\nin generator 'gan' from dfq-gan 0.2\n"


def test_an_unexpected_error_is_a_line_with_its_notes(demo_that: Callable[[BaseException], None]) -> None:
    raised = RuntimeError("out of luck")
    raised.add_note("in generator 'gan' from dfq-gan 0.2")
    demo_that(raised)
    result = CliRunner().invoke(cli, ["demo"])
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[:2] == ["Error: RuntimeError: out of luck", "in generator 'gan' from dfq-gan 0.2"]
    assert "DFQ_DEBUG=1" in lines[2]


def test_debugging_shows_where_it_happened(
    demo_that: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFQ_DEBUG", "1")
    demo_that(RuntimeError("out of luck"))
    assert isinstance(CliRunner().invoke(cli, ["demo"]).exception, RuntimeError)
    demo_that(errors.ModelError("a bad model"))
    result = CliRunner().invoke(cli, ["demo"])
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert "Error: a bad model" in result.stderr


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(demo_that: Callable[[BaseException], None]) -> None:
    demo_that(KeyboardInterrupt())
    result = CliRunner().invoke(cli, ["demo", "-o", "my-demo"])
    assert result.exit_code == errors.INTERRUPTED_EXIT_CODE == 130
    assert "Interrupted. Finished work is kept in my-demo: run the same command again." in result.stderr


def test_what_frameworks_print_stays_off_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        rejected = ()

        def as_dict(self) -> dict[str, int]:
            return {"rows": 3}

    def run_demo(_output: Path, _seed: int, listeners: list[Callable[[ProgressEvent], None]]) -> Result:
        click.echo("framework chatter")
        listeners[0](ProgressEvent("synthesize", 1, 2))
        return Result()

    module = types.ModuleType("dfq_plugins.demo.run")
    module.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dfq_plugins.demo.run", module)
    result = CliRunner().invoke(cli, ["demo", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"rows": 3}
    assert "framework chatter" in result.stderr
    assert "synthesize: 1 of 2" in result.stderr


def test_plain_progress_is_at_most_a_line_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 5.0, 6.0, 12.0])
    lines = progress.PlainLines(interval=5, clock=lambda: next(times))
    for completed in (0, 1, 5, 6, 10):
        lines(ProgressEvent("synthesize", completed, 10, {"loss": 0.25}))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "synthesize: 0 of 10, loss 0.25",
        "synthesize: 5 of 10, loss 0.25, about 5 s left",
        "synthesize: 10 of 10, loss 0.25",
    ]


def test_bars_show_stage_count_and_metrics() -> None:
    from io import StringIO

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    screen = StringIO()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    with Progress(*columns, console=Console(file=screen, force_terminal=True, width=100)) as bars:
        show = progress.Bars(bars)
        show(ProgressEvent("synthesize", 3, 10, {"loss": 0.25}))
        show(ProgressEvent("calibrate", 1, 2))
    assert "3/10" in screen.getvalue()
    assert "loss 0.25" in screen.getvalue()
    assert "calibrate" in screen.getvalue()


def test_on_a_terminal_progress_goes_to_standard_error_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    with progress.reporting() as listener:
        listener(ProgressEvent("synthesize", 5, 10, {"loss": 0.25}))
    assert "5/10" in screen.getvalue()
    assert "-:--:--" in screen.getvalue()  # too early to tell
    assert "\x1b[3" not in screen.getvalue()  # NO_COLOR


def test_the_shell_completes_calibrators_from_what_is_installed() -> None:
    environment = {
        "_DFQ_COMPLETE": "bash_complete",
        "COMP_WORDS": "dfq quantize m:f data --calibrator torch",
        "COMP_CWORD": "5",
    }
    result = CliRunner().invoke(cli, prog_name="dfq", env=environment)
    assert result.stdout == "plain,torch-ao\nplain,torchao\n"


@pytest.mark.parametrize("words", ["dfq syn", "dfq quantize m:f data --calibrator ", "dfq plugins b", "dfq demo --o"])
def test_completion_imports_no_torch(words: str) -> None:
    code = "import sys\nfrom dfq_plugins.cli import cli\ntry:\n    cli(prog_name='dfq')\nexcept SystemExit:\n    pass\n"
    environment = {"_DFQ_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    completed = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    *names, torch_came = completed.stdout.splitlines()
    assert names
    assert torch_came == "False"
    assert completed.stderr == ""


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """Return what a command writes to a terminal."""
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-m", "dfq_plugins", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    with subprocess.Popen(command, stdout=child, stderr=child, env=inherited | {"TERM": "xterm"} | environment):
        os.close(child)
        parts = []
        while True:
            try:
                part = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(parent)
    return b"".join(parts).decode()


def test_colors_on_a_terminal_alone_and_never_against_no_color() -> None:
    assert "\x1b[" in on_a_terminal("plugins")
    color = re.compile(r"\x1b\[(?:\d+;)*[349]\d[;m]")  # bold and dim are no colors
    assert color.search("\x1b[1;31m")
    assert not color.search(on_a_terminal("plugins", NO_COLOR="1"))
    command = [sys.executable, "-m", "dfq_plugins", "plugins"]
    assert "\x1b" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_python_m_runs_the_command() -> None:
    command = [sys.executable, "-m", "dfq_plugins", "quantize"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 2
    assert "Usage: dfq" in completed.stderr
