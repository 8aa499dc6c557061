"""Passes every progress event of a run to all its listeners."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import ProgressEvent

logger = logging.getLogger(__name__)


class Broadcast:
    """Calls each listener with each event; one that raises is logged once, dropped, and the run goes on.

    Args:
        listeners: the caller's own listeners.
        registry: every ready listener in it hears the run as well.

    >>> from dfq_plugins.types import ProgressEvent
    >>> heard = []
    >>> broadcast = Broadcast([heard.append])
    >>> broadcast(ProgressEvent("synthesize", 1, 2))
    >>> heard[0].completed
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
        """The listeners that are still called."""
        return tuple(name for name, _ in self._listeners)

    def __call__(self, event: ProgressEvent) -> None:
        """Pass one event on."""
        for pair in tuple(self._listeners):
            name, listener = pair
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001  a listener's code may raise anything
                self._listeners.remove(pair)
                _log_dropped(name, error)


def _create_all(registry: Registry) -> list[tuple[str, Callable[[ProgressEvent], None]]]:
    """Build every ready listener; one that cannot be built is dropped like one that raises."""
    created = []
    for name, provided in registry.listeners.items():
        if provided.state == "ready":
            try:
                created.append((str(provided), registry.create("listener", name)))
            except Exception as error:  # noqa: BLE001  a plugin's code may raise anything
                _log_dropped(str(provided), error)
    return created


def _log_dropped(name: str, error: Exception) -> None:
    logger.error("Dropped the %s because it raised; the run goes on.", name, exc_info=error)


def _name_of(listener: object) -> str:
    return str(getattr(listener, "__qualname__", type(listener).__qualname__))
