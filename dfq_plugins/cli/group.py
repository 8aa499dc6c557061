"""The click group behind `dfq`: imports a command when it is called, and turns errors into exit codes."""

from __future__ import annotations

import errno
import os
import pkgutil
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dfq_plugins.errors import INTERRUPTED_EXIT_CODE, DfqError, DfqWarning, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEBUG_VARIABLE = "DFQ_DEBUG"
"""Environment variable; 1 shows the traceback of every error."""

_RESUME_KEY = "dfq_plugins.resume_hint"


class Place(NamedTuple):
    """The location of a command, as `"package.module:command"`, and its one-line summary."""

    where: str
    summary: str


class CommandGroup(click.Group):
    """A group that imports a command's module only when the command runs, not for the help text.

    Args:
        places: location of each command.
        options: arguments of `click.Group`.
    """

    def __init__(self, *, places: Mapping[str, Place], **options: Any) -> None:
        super().__init__(**options)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the command names in the order of the help text."""
        return list(self._places)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the command names and summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in self._places.items()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        place = self._places.get(cmd_name)
        return None if place is None else pkgutil.resolve_name(place.where)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the requested command, or suggest the nearest name."""
        if args[0] not in self._places and not args[0].startswith("-"):
            raise click.UsageError(f"No such command {args[0]!r}.{nearest(args[0], self._places)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn an error into a message on standard error and an exit code."""
        try:
            with plain_plugin_warnings():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            click.echo(f"\nInterrupted. {ctx.meta.get(_RESUME_KEY, 'Run the same command again.')}", err=True)
            ctx.exit(INTERRUPTED_EXIT_CODE)
        except DfqError as error:
            _report(error, str(error))
            ctx.exit(error.exit_code)
        except Exception as error:
            if _debugging() or getattr(error, "errno", None) == errno.EPIPE:  # click ends quietly on a closed pipe
                raise
            _report(error, f"{type(error).__name__}: {error}")
            click.echo(f"Unexpected error; set {DEBUG_VARIABLE}=1 to see the traceback.", err=True)
            ctx.exit(1)


def set_resume_hint(hint: str) -> None:
    """Set the hint that is shown if the current command is interrupted from here on."""
    click.get_current_context().meta[_RESUME_KEY] = hint


@contextmanager
def plain_plugin_warnings() -> Iterator[None]:
    """Show each `DfqWarning` on one line, without the source line."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", DfqWarning)
        show = warnings.showwarning

        def show_plainly(message: Warning | str, category: type[Warning], *where: Any, **kwargs: Any) -> None:
            if issubclass(category, DfqWarning):
                click.echo(f"Warning: {message}", err=True)
            else:
                show(message, category, *where, **kwargs)

        warnings.showwarning = show_plainly
        yield


def _report(error: Exception, message: str) -> None:
    if _debugging():
        click.echo("".join(traceback.format_exception(error)), err=True)
    click.echo(f"Error: {message}", err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(note, err=True)


def _debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}
