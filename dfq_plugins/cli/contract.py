"""`dfq plugins --check NAME`: run the contract tests on an installed generator or calibrator."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from dfq_plugins.cli.output import console, print_json
from dfq_plugins.errors import ContractError, PluginError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfq_plugins.host.registry import Registry
    from dfq_plugins.testing.check import ContractKind, ContractResult


def check_plugin(registry: Registry, name: str | None, options: Mapping[str, str], *, as_json: bool) -> None:
    """Run the contract tests on the plugin with that name, and print which passed and which failed.

    Raises:
        UsageError: the name is missing, or an option is unknown.
        PluginError: no generator or calibrator with that name is ready, or pytest is not installed.
        ContractError: a contract test failed.
    """
    kinds = _kinds_of(registry, name)
    for kind in kinds:
        registry.options(kind, str(name), options)
    if importlib.util.find_spec("pytest") is None:
        raise PluginError('Contract tests need pytest, which is not installed. Run: pip install "dfq-plugins[test]"')
    from dfq_plugins.testing.check import run_contract  # noqa: PLC0415  imports torch and pytest

    results: dict[ContractKind, ContractResult] = {}
    for kind in kinds:
        with contextlib.redirect_stdout(sys.stderr):  # framework output does not belong to the result
            results[kind] = run_contract(kind, partial(registry.create, kind, str(name), options))
    if as_json:
        print_json({"name": name, "contracts": [_as_dict(kind, result) for kind, result in results.items()]})
    else:
        for kind, result in results.items():
            _print_result(kind, str(name), result)
    failed = sum(len(result.failed) for result in results.values())
    if failed:
        raise ContractError(
            f"{name!r} must pass its contract, but fails {failed} of its tests. Fix the plugin and check it again; "
            "dfq_plugins.testing describes each test."
        )


def _kinds_of(registry: Registry, name: str | None) -> list[ContractKind]:
    """Return the kinds with a plugin of that name; a generator that also learns has two contracts."""
    if name is None:
        raise UsageError("--check needs the NAME of a generator or calibrator: dfq plugins --check NAME.")
    every: tuple[ContractKind, ...] = ("generator", "learning generator", "calibrator")
    found = [kind for kind in every if name in registry.of(kind)]
    for kind in found:
        registry.find(kind, name)  # raises if it is unavailable
    if found:
        return found
    if name in registry.listeners:
        raise PluginError(f"{name!r} is a listener, but only generators and calibrators have a contract.")
    known = [*registry.generators, *registry.learning_generators, *registry.calibrators]
    broken = "".join(f" Broken: {plugin}." for plugin in registry.broken)
    raise PluginError(
        f"No generator or calibrator is named {name!r}.{nearest(name, known)} Known: {', '.join(known) or 'none'}."
        f"{broken}"
    )


def _print_result(kind: str, name: str, result: ContractResult) -> None:
    output = console()
    for test in result.passed:
        output.print(f"passed  {_words(test)}", soft_wrap=True, style="dim")
    for test, reason in result.failed.items():
        output.print(f"FAILED  {_words(test)}", soft_wrap=True, style="bold red")
        output.print("        " + reason.replace("\n", "\n        "), soft_wrap=True)
    total = len(result.passed) + len(result.failed)
    click.echo(f"{kind} {name!r}: {len(result.passed)} of {total} tests passed.")


def _words(test: str) -> str:
    """Turn a test's name into a sentence.

    >>> _words("test_same_seed_same_values"), _words("test_unusable_data_are_refused[no batch]")
    ('same seed same values', 'unusable data are refused (no batch)')
    """
    name, _, case = test.removeprefix("test_").partition("[")
    return name.replace("_", " ") + (f" ({case.rstrip(']')})" if case else "")


def _as_dict(kind: str, result: ContractResult) -> dict[str, Any]:
    return {"kind": kind, "passed": result.passed, "failed": result.failed}
