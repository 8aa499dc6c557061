"""Progress on standard error: a bar with the remaining time on a terminal, otherwise a plain line now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from dfq_plugins.listeners.log import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

    from dfq_plugins.types import ProgressEvent

LINE_INTERVAL = 5.0
"""Seconds between plain lines."""


@contextmanager
def reporting() -> Iterator[Callable[[ProgressEvent], None]]:
    """Yield the listener that shows progress, and redirect standard output to standard error within the block."""
    with contextlib.redirect_stdout(sys.stderr):
        if not sys.stderr.isatty():
            yield PlainLines()
            return
        with _progress() as bars:
            yield Bars(bars)


@contextmanager
def silence() -> Iterator[Callable[[ProgressEvent], None]]:
    """Yield a silent listener and suppress logged warnings, since another process of the run reports them."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda _: None
    finally:
        logging.disable(former)


class PlainLines:
    """Prints the first event, then at most one line per interval, with the remaining time.

    Args:
        interval: seconds between lines.
        clock: monotonic clock in seconds; a parameter so that tests do not have to wait.
    """

    def __init__(self, interval: float = LINE_INTERVAL, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._last: float | None = None
        self._starts: dict[str, tuple[float, float]] = {}

    def __call__(self, event: ProgressEvent) -> None:
        """Print one event if a line is due."""
        now = self._clock()
        start, done = self._starts.setdefault(event.stage, (now, event.position))
        if self._last is not None and now - self._last < self._interval:
            return
        self._last = now
        click.echo(describe(event) + _time_left(now - start, event.position - done, event), err=True)


class Bars:
    """Shows one bar per stage, with the latest metrics next to it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: ProgressEvent) -> None:
        """Update the stage's bar."""
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._progress.add_task(event.stage, metrics="")
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
        self._progress.update(self._tasks[event.stage], completed=event.position, total=event.total, metrics=metrics)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[metrics]}", markup=False),
        console=Console(stderr=True),
    )


def _time_left(seconds: float, done: float, event: ProgressEvent) -> str:
    if done <= 0 or event.completed >= event.total:
        return ""
    return f", about {seconds / done * (event.total - event.position):.0f} s left"
