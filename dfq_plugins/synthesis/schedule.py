"""The number of steps of an optimization: fixed, or as many as fit into a time budget. Imports no torch."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FEWEST_STEPS = 10
"""Minimum number of steps: fewer would not optimize anything, so a budget that is too small is exceeded."""

MEMORY = 0.9
"""Decay of the estimated step time per step: a single slow step counts little, sustained load counts."""

PATIENCE = 3
"""Consecutive loss checks without progress that are tolerated: augmentation makes the loss fluctuate."""


class Plateau:
    """Detects that a loss has stopped falling.

    Args:
        share: fraction of the best loss so far by which a new loss must be lower to count as progress; 0 disables the
            check.

    >>> plateau = Plateau(0.1)
    >>> [plateau.reached(loss) for loss in (1.0, 0.5, 0.49, 0.52, 0.48)]
    [False, False, False, False, True]
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._best = float("inf")
        self._stalled = 0

    def reached(self, loss: float) -> bool:
        """Record a loss; return whether the last ones made no progress."""
        progress = loss < (1 - self._share) * self._best
        self._stalled = 0 if progress else self._stalled + 1
        self._best = loss if progress else self._best
        return self._share > 0 and self._stalled >= PATIENCE


class StepSchedule:
    """A fixed number of steps.

    Args:
        steps: number of steps, at least 1.

    >>> pace = StepSchedule(4)
    >>> pace.advance()
    >>> pace.progress, pace.finished
    (0.25, False)
    """

    def __init__(self, steps: int) -> None:
        self.expected = steps
        self.done = 0

    @property
    def progress(self) -> float:
        """Fraction of the schedule that is done, from 0 to 1."""
        return self.done / self.expected

    @property
    def rate(self) -> float:
        """Factor of the learning rate, which is meant for the usual number of steps."""
        return 1.0

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.done >= self.expected

    def advance(self) -> None:
        """Count one step."""
        self.done += 1

    def stop(self) -> None:
        """Finish after the steps so far."""
        self.expected = self.done

    def measure(self) -> None:
        """Read the clock; call this when the steps so far have actually completed."""


class TimedSchedule(StepSchedule):
    """As many steps as fit into a time budget, with the schedule stretched or shrunk to end with them.

    The first steps assume the maximum number. From the second step on, the measured step time determines how many more
    steps fit, and the rest of the schedule is spread over them. The first step includes compilation and warm-up and is
    not counted as typical.

    Args:
        seconds: time from now to the end.
        most: maximum number of steps; more do not help.
        clock: monotonic clock in seconds.
        usual: number of steps that the learning rate is meant for; fewer steps reduce it in proportion, because a short
            run cannot recover from large first steps. None never reduces it.
    """

    def __init__(
        self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic, usual: int | None = None
    ) -> None:
        super().__init__(most)
        self._most = most
        self._usual = usual
        self._clock = clock
        self._end = clock() + seconds
        self._last: tuple[int, float] | None = None
        self._step: float | None = None
        self._progress = 0.0

    @property
    def progress(self) -> float:
        """Fraction of the schedule that is done, from 0 to 1."""
        return self._progress

    @property
    def rate(self) -> float:
        """Factor of the learning rate: smaller the fewer steps fit, and smallest until steps have been timed."""
        if self._usual is None:
            return 1.0
        steps = FEWEST_STEPS if self._step is None else self.expected
        return min(1.0, steps / self._usual)

    def advance(self) -> None:
        """Count one step, and advance by an equal part of the remaining schedule."""
        self._progress += (1 - self._progress) / max(1, self.expected - self.done)
        super().advance()

    def measure(self) -> None:
        """Update the total number of steps."""
        now = self._clock()
        if self._last is not None and self.done > self._last[0]:
            done, since = self._last
            latest = (now - since) / (self.done - done)
            kept = MEMORY ** (self.done - done)
            self._step = latest if self._step is None else kept * self._step + (1 - kept) * latest
            fitting = self.done + int(max(0.0, self._end - now) / self._step) if self._step > 0 else self._most
            self.expected = max(self.done, min(self._most, max(fitting, FEWEST_STEPS)))
        self._last = (self.done, now)


def pace_within(seconds: float, steps: int, usual: int | None = None) -> StepSchedule:
    """Return a schedule of `steps` steps, or of as many of them as fit into a finite number of seconds.

    Args:
        seconds: time from now to the end; infinite without a time budget.
        steps: maximum number of steps.
        usual: number of steps that the learning rate is meant for; see `TimedSchedule`.

    >>> pace_within(math.inf, 7).expected
    7
    """
    return StepSchedule(steps) if math.isinf(seconds) else TimedSchedule(seconds, steps, time.monotonic, usual)
