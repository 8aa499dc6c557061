"""The learning rate over a training run, and how far the run is: by its steps, or by the clock where that is ahead."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """Return what the learning rate is multiplied by: a linear rise, then a half cosine down to zero.

    Args:
        progress: share of the training that is done, 0 to 1.
        warm_up: share in which the rate rises.

    >>> [round(learning_rate_factor(progress, 0.2), 3) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (min(progress, 1.0) - warm_up) / (1 - warm_up)))


class Clock:
    """Says how far a run is.

    Where `max_seconds` would cut the steps short, the schedule is compressed into them: the learning rate still falls
    to zero at the end. A run with time to spare takes all its steps and no more.

    Args:
        steps: training steps asked for.
        max_seconds: most seconds, or None.
        elapsed: seconds of the parts of the run before this one.
        now: seconds that never run backwards; a parameter so that tests need not wait.
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
        """Return the share of the run that is done before the given step, at most 1.

        >>> clock = Clock(100, 10.0, now=lambda: 0.0)
        >>> clock.progress(20, seconds=1.0), clock.progress(20, seconds=5.0)
        (0.2, 0.5)
        """
        by_steps = step / self._steps
        if self._limit is None:
            return min(by_steps, 1.0)
        return min(max(by_steps, (self.seconds if seconds is None else seconds) / self._limit), 1.0)
