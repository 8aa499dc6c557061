"""An automatic progress bar in Jupyter notebooks; does nothing elsewhere."""

from __future__ import annotations

import html
import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from dfq_plugins.listeners.log import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.types import NoOptions, ProgressEvent

INTERVAL = 0.2
"""Seconds between redraws of a bar."""


class NotebookListener:
    """Shows one bar per stage below the running cell.

    Args:
        _options: none.
        clock: monotonic clock in seconds; a parameter so that tests do not have to wait.
    """

    def __init__(self, _options: NoOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bars: dict[str, Any] = {}
        self._drawn: dict[str, float] = {}

    def __call__(self, event: ProgressEvent) -> None:
        """Redraw the stage's bar if it is due."""
        if not in_notebook():
            return
        now = self._clock()
        last = self._drawn.get(event.stage)
        if last is not None and event.completed < event.total and now - last < INTERVAL:
            return
        self._drawn[event.stage] = now
        display: Any = importlib.import_module("IPython.display")  # available, since this runs in a notebook
        bar = display.HTML(bar_html(event))
        if event.stage in self._bars:
            self._bars[event.stage].update(bar)
        else:
            self._bars[event.stage] = display.display(bar, display_id=True)


def in_notebook() -> bool:
    """Return whether the code runs in a Jupyter kernel, without importing IPython."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and hasattr(get_shell(), "kernel")


def bar_html(event: ProgressEvent) -> str:
    """Return a bar with the event's line next to it.

    >>> from dfq_plugins.types import ProgressEvent
    >>> bar_html(ProgressEvent("synthesize", 3, 10))
    '<progress value="3" max="10"></progress> <code>synthesize: 3 of 10</code>'
    """
    line = html.escape(describe(event))
    return f'<progress value="{event.completed}" max="{event.total}"></progress> <code>{line}</code>'
