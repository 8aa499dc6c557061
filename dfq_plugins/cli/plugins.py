"""`dfq plugins`: list plugins with their provider, state and options."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dfq_plugins.cli.arguments import json_option, plugin_options
from dfq_plugins.cli.output import console, print_json, print_table
from dfq_plugins.errors import DfqError, PluginError, UsageError, nearest
from dfq_plugins.host.loading import BrokenPlugin
from dfq_plugins.host.options import OptionRow, describe_options
from dfq_plugins.host.plugin_info import KINDS
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.shell_completion import CompletionItem

    from dfq_plugins.host.registry import PluginInfo, Registry

HEAD = ("KIND", "NAME", "PROVIDER", "VERSION", "STATE")


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str | CompletionItem]:
    with warnings.catch_warnings(), contextlib.suppress(DfqError):  # only names may reach the user's prompt
        warnings.simplefilter("ignore")
        return [info.entry.name for info in _all(get_registry()) if info.entry.name.startswith(incomplete)]
    return []


@click.command()
@click.argument("name", required=False, shell_complete=_complete)
@click.option("--check", is_flag=True, help="Run the contract tests on NAME and report failures.")
@plugin_options
@json_option
def plugins(name: str | None, check: bool, options: dict[str, str], as_json: bool) -> None:
    """List all generators, calibrators and listeners; with NAME, show the options of one plugin in detail.

    With --check, run the tests that every generator or calibrator must pass on NAME, with its --option settings.
    """
    registry = get_registry()
    if check:
        from dfq_plugins.cli.contract import check_plugin  # noqa: PLC0415  imports torch and pytest later

        check_plugin(registry, name, options, as_json=as_json)
        return
    if options:
        raise UsageError(
            "Here --option only applies with --check NAME. To use a plugin, run dfq synthesize or dfq quantize."
        )
    shown = [info for info in _all(registry) if name in {None, info.entry.name}]
    broken = [plugin for plugin in registry.broken if name in {None, plugin.entry_point, plugin.distribution}]
    if name is not None and not shown and not broken:
        known = [info.entry.name for info in _all(registry)]
        raise PluginError(f"No plugin is named {name!r}.{nearest(name, known)} Known: {', '.join(known) or 'none'}.")
    if as_json:
        print_json({"plugins": [*map(_as_dict, shown)], "broken": [*map(_broken_as_dict, broken)]})
    else:
        _print_overview(shown, broken, short=name is None)


def _all(registry: Registry) -> list[PluginInfo]:
    return [info for kind in KINDS for info in registry.of(kind).values()]


def _print_overview(shown: list[PluginInfo], broken: list[BrokenPlugin], *, short: bool) -> None:
    rows = [*map(_row, shown), *map(_row, broken)]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    details = [list(_details(info, short=short)) for info in shown] + [[plugin.error] for plugin in broken]
    output = console()
    output.print(_line(HEAD, widths), style="bold", soft_wrap=True)
    for row, lines in zip(rows, details, strict=True):
        output.print(_line(row, widths), soft_wrap=True, style="" if row[-1] == "ready" else "yellow")
        for line in lines:
            output.print(" " * (widths[0] + 2) + line, soft_wrap=True, style="dim")
    if not short:
        for info in shown:
            _print_options(describe_options(info.entry.options))


def _row(plugin: PluginInfo | BrokenPlugin) -> tuple[str, ...]:
    if isinstance(plugin, BrokenPlugin):
        return "plugin", plugin.entry_point, plugin.distribution, plugin.version, "broken"
    return plugin.kind, plugin.entry.name, plugin.distribution, plugin.version, plugin.state


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _details(info: PluginInfo, *, short: bool) -> Iterator[str]:
    yield info.entry.summary
    if info.missing:
        yield f"needs {', '.join(info.missing)}: {info.install_line}"
    options = describe_options(info.entry.options)
    if short and options:
        yield "options: " + " ".join(f"{option.name}={option.default}" for option in options)


def _print_options(options: tuple[OptionRow, ...]) -> None:
    if not options:
        click.echo("\nNo options.")
        return
    print_table(("Option", "Type", "Default", "What it does"), (tuple(asdict(option).values()) for option in options))


def _as_dict(info: PluginInfo) -> dict[str, Any]:
    return {
        "kind": info.kind,
        "name": info.entry.name,
        "summary": info.entry.summary,
        "provider": info.distribution,
        "version": info.version,
        "state": info.state,
        "missing": info.missing,
        "install": info.install_line,
        "options": [asdict(option) for option in describe_options(info.entry.options)],
    }


def _broken_as_dict(plugin: BrokenPlugin) -> dict[str, str]:
    return {
        "entry_point": plugin.entry_point,
        "provider": plugin.distribution,
        "version": plugin.version,
        "error": plugin.error,
    }
