"""Sends every progress event of a run to all listeners."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import ProgressEvent

logger = logging.getLogger(__name__)


class Broadcast:
    """Calls each listener with each event; one that raises is logged once and dropped, and the run continues.

    Args:
        listeners: the caller's own listeners.
        registry: its ready listeners receive the events as well.

    >>> from dfq_plugins.types import ProgressEvent
    >>> received = []
    >>> broadcast = Broadcast([received.append])
    >>> broadcast(ProgressEvent("synthesize", 1, 2))
    >>> received[0].completed
    1
    """

    def __init__(
        self, listeners: Iterable[Callable[[ProgressEvent], None]] = (), registry: Registry | None = None
    ) -> None:
        self._listeners = [(f"listener {_name_of(listener)!r}", listener) for listener in listeners]
        if registry is not None:
            self._listeners += _create_all(registry)

    @property
    def names(self) -> tuple[str, ...]:
        """The listeners that have not been dropped."""
        return tuple(name for name, _ in self._listeners)

    def __call__(self, event: ProgressEvent) -> None:
        """Send one event to all listeners."""
        from dfq_plugins.model_state import kept_settings  # noqa: PLC0415  imports torch

        for pair in tuple(self._listeners):
            name, listener = pair
            try:
                with kept_settings():  # a plot may seed or set whatever it likes
                    listener(event)
            except Exception as error:  # noqa: BLE001  a listener's code may raise anything
                self._listeners.remove(pair)
                _log_dropped(name, error)


def _create_all(registry: Registry) -> list[tuple[str, Callable[[ProgressEvent], None]]]:
    """Build every ready listener; one that cannot be built is logged and dropped."""
    created = []
    for name, info in registry.listeners.items():
        if info.state == "ready":
            try:
                created.append((str(info), registry.create("listener", name)))
            except Exception as error:  # noqa: BLE001  a plugin's code may raise anything
                _log_dropped(str(info), error)
    return created


def _log_dropped(name: str, error: Exception) -> None:
    logger.error("Dropped the %s because it raised an error; the run continues.", name, exc_info=error)


def _name_of(listener: object) -> str:
    return str(getattr(listener, "__qualname__", type(listener).__qualname__))
