"""The learning rate schedule, and the progress of a run: by steps or by time, whichever is further along."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """Return the factor of the learning rate: a linear warm-up, then half a cosine down to zero.

    Args:
        progress: completed share of the training, 0 to 1.
        warm_up: share of the training in which the rate rises.

    >>> [round(learning_rate_factor(progress, 0.2), 3) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (min(progress, 1.0) - warm_up) / (1 - warm_up)))


class Clock:
    """Measures the progress of a run.

    If `max_seconds` would end the run early, the schedule is compressed to fit, so the learning rate still falls to
    zero at the end. A run with time to spare takes exactly its steps.

    Args:
        steps: requested training steps.
        max_seconds: maximum seconds, or None.
        elapsed: seconds of earlier parts of a resumed run.
        now: monotonic clock in seconds; a parameter so that tests do not have to wait.
    """

    def __init__(
        self, steps: int, max_seconds: float | None, elapsed: float = 0.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._limit, self._now = steps, max_seconds, now
        self._start = now() - elapsed

    @property
    def seconds(self) -> float:
        """Seconds of the run so far."""
        return self._now() - self._start

    def progress(self, step: float, seconds: float | None = None) -> float:
        """Return the share of the run that is complete before the given step, at most 1.

        >>> clock = Clock(100, 10.0, now=lambda: 0.0)
        >>> clock.progress(20, seconds=1.0), clock.progress(20, seconds=5.0)
        (0.2, 0.5)
        """
        by_steps = step / self._steps
        if self._limit is None:
            return min(by_steps, 1.0)
        return min(max(by_steps, (self.seconds if seconds is None else seconds) / self._limit), 1.0)
