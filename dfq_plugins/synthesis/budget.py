"""A time budget for a whole synthesis, divided among its shards. Imports no torch.

The clock is `time.monotonic`, so setting the computer's clock has no effect. The number of iterations that fit into a
budget depends on the machine and its load, and so do the bytes; each shard records its actual number of iterations.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError
from dfq_plugins.types import TimeBudget

if TYPE_CHECKING:
    from collections.abc import Callable


class RunBudget:
    """The number of seconds that a run may take, starting now.

    Args:
        seconds: time for the whole run, greater than 0.
        clock: monotonic clock in seconds; a parameter so that tests do not have to wait.

    Raises:
        UsageError: the budget is not positive.

    >>> budget = RunBudget(60, clock=lambda: 0.0)
    >>> budget.allow(samples=256, ahead=1024, processes=2, reserve=10).seconds
    25.0
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not seconds > 0:
            raise UsageError(f"max_seconds must be greater than 0, got {seconds}. Omit it to run without a budget.")
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    @classmethod
    def of(cls, value: float | RunBudget | None) -> RunBudget | None:
        """Return a budget that starts now from a number of seconds; return a budget or None unchanged.

        Raises:
            UsageError: the budget is not positive.
        """
        if value is None or isinstance(value, RunBudget):
            return value
        return cls(value)

    @property
    def left(self) -> float:
        """Seconds left; negative if the budget is exceeded."""
        return self._end - self._clock()

    def allow(self, *, samples: int, ahead: int, processes: int, reserve: float) -> TimeBudget:
        """Return the time for one shard: an equal share per sample that this process may still have to make.

        Args:
            samples: number of samples in the shard.
            ahead: number of samples that are neither made nor claimed yet, including those of the shard.
            processes: number of processes that make samples in parallel.
            reserve: seconds to reserve for the work after the optimization.
        """
        left = max(0.0, self.left - reserve)
        return TimeBudget(left * min(1.0, samples * processes / ahead), left)
