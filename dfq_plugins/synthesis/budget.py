"""A budget of time for a whole synthesis, and how it is shared out among shards. Imports no torch.

The clock is `time.monotonic`: setting the computer's clock changes nothing. How many iterations a budget holds depends
on the machine and its load, and so do the bytes; each shard says how many it really took.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError
from dfq_plugins.types import TimeBudget

if TYPE_CHECKING:
    from collections.abc import Callable


class RunBudget:
    """The seconds that a run may take, counted from now.

    Args:
        seconds: of the whole run, more than 0.
        clock: seconds that never run backwards; a parameter so that tests need not wait.

    Raises:
        UsageError: the budget is not positive.

    >>> budget = RunBudget(60, clock=lambda: 0.0)
    >>> budget.allow(samples=256, ahead=1024, processes=2, reserve=10).seconds
    25.0
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not seconds > 0:
            raise UsageError(f"max_seconds must be above 0, got {seconds}.")
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    @classmethod
    def of(cls, value: float | RunBudget | None) -> RunBudget | None:
        """Return a budget of so many seconds from now, the budget that was given, or None.

        Raises:
            UsageError: the budget is not positive.
        """
        if value is None or isinstance(value, RunBudget):
            return value
        return cls(value)

    @property
    def left(self) -> float:
        """Seconds to the end; negative after it."""
        return self._end - self._clock()

    def allow(self, *, samples: int, ahead: int, processes: int, reserve: float) -> TimeBudget:
        """Return the time for one shard: an equal share for each sample that this process may still have to make.

        Args:
            samples: samples of the shard.
            ahead: samples that nobody has made or claimed yet, with those of the shard.
            processes: how many make them at the same time.
            reserve: seconds to keep for what follows the optimization.
        """
        left = max(0.0, self.left - reserve)
        return TimeBudget(left * min(1.0, samples * processes / ahead), left)
