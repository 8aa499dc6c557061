"""Registers the built-in progress listeners through the public hooks. Does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.listeners.log import LogOptions
from dfq_plugins.types import ProgressListenerEntry

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def dfq_progress_listeners() -> Iterator[ProgressListenerEntry]:
    """Provide the listeners for Python's logging and for notebooks."""
    yield ProgressListenerEntry(
        "log", "Progress in Python's logging", "dfq_plugins.listeners.log:LogListener", options=LogOptions
    )
    yield ProgressListenerEntry(
        "notebook", "A progress bar in Jupyter, silent elsewhere", "dfq_plugins.listeners.notebook:NotebookListener"
    )
