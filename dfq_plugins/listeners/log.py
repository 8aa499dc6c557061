"""Logs progress with Python's logging, for runs without a terminal. Silent until logging is configured for INFO."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.types import ProgressEvent

logger = logging.getLogger("dfq_plugins.progress")


@dataclass(frozen=True)
class LogOptions:
    """Settings of the `log` listener."""

    level: Literal["DEBUG", "INFO", "WARNING"] = field(default="INFO", metadata={"help": "level of the log records"})
    interval: Annotated[float, Ge(0)] = field(default=10.0, metadata={"help": "seconds between two records of a stage"})


class LogListener:
    """Logs the first and the last event of a stage, and one event per interval in between.

    Args:
        options: level and interval.
        clock: monotonic clock in seconds; a parameter so that tests do not have to wait.
    """

    def __init__(self, options: LogOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._level = logging.getLevelNamesMapping()[options.level]
        self._interval = options.interval
        self._clock = clock
        self._stage = ""
        self._last = 0.0

    def __call__(self, event: ProgressEvent) -> None:
        """Log one event if it is due."""
        now = self._clock()
        if event.stage == self._stage and event.completed < event.total and now - self._last < self._interval:
            return
        self._stage, self._last = event.stage, now
        logger.log(self._level, "%s", describe(event))


def describe(event: ProgressEvent) -> str:
    """Format an event as one line.

    >>> from dfq_plugins.types import ProgressEvent
    >>> describe(ProgressEvent("synthesize", 30, 300, {"loss": 0.125}))
    'synthesize: 30 of 300, loss 0.125'
    """
    metrics = "".join(f", {name} {value:.4g}" for name, value in event.metrics.items())
    return f"{event.stage}: {event.completed} of {event.total}{metrics}"
