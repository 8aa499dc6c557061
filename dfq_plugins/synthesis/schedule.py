"""How many steps an optimization takes: a fixed number, or as many as fit into a time. Imports no torch."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FEWEST_STEPS = 10
"""Below this nothing is optimized: a budget that is too small is overrun."""

MEMORY = 0.9
"""How much of the estimated time of a step outlives one more step: a slow step counts little, lasting load does."""

PATIENCE = 3
"""Looks at the loss in a row that may bring nothing: augmentation lets it go up and down."""


class Plateau:
    """Notices that a loss has stopped falling.

    Args:
        share: by how much of the best loss so far a new one must be lower to count as progress; 0 for never.

    >>> plateau = Plateau(0.1)
    >>> [plateau.reached(loss) for loss in (1.0, 0.5, 0.49, 0.52, 0.48)]
    [False, False, False, False, True]
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._best = float("inf")
        self._idle = 0

    def reached(self, loss: float) -> bool:
        """Take a loss into account; tell whether the last ones brought nothing."""
        progress = loss < (1 - self._share) * self._best
        self._idle = 0 if progress else self._idle + 1
        self._best = loss if progress else self._best
        return self._share > 0 and self._idle >= PATIENCE


class StepSchedule:
    """A fixed number of steps.

    Args:
        steps: how many, at least 1.

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
        """Share of the schedule that the steps so far have covered, from 0 to 1."""
        return self.done / self.expected

    @property
    def rate(self) -> float:
        """What to multiply the learning rate by: it is meant for the usual number of steps."""
        return 1.0

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.done >= self.expected

    def advance(self) -> None:
        """Count one step."""
        self.done += 1

    def stop(self) -> None:
        """Let the steps so far be all."""
        self.expected = self.done

    def measure(self) -> None:
        """Look at the clock; call it when the steps so far have really been done."""


class TimedSchedule(StepSchedule):
    """As many steps as fit into a time, with the schedule stretched or shrunk so that it ends with them.

    The first steps are taken as if the most were to be made; from the second on, the time that they took says how many
    more fit, and the rest of the schedule is spread over those. The first step pays for compilation and warm-up, and is
    not counted as typical.

    Args:
        seconds: from now to the end.
        most: steps beyond which more do not help.
        clock: seconds that never run backwards.
        usual: steps that the learning rate is meant for; fewer take a smaller one, in proportion, for what the first
            large steps disturb a short run has no time to mend. None leaves the rate alone.
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
        """Share of the schedule that the steps so far have covered, from 0 to 1."""
        return self._progress

    @property
    def rate(self) -> float:
        """The smaller, the fewer steps fit; smallest until the first ones have been timed."""
        if self._usual is None:
            return 1.0
        steps = FEWEST_STEPS if self._step is None else self.expected
        return min(1.0, steps / self._usual)

    def advance(self) -> None:
        """Count one step, and move on in the schedule by an equal part of what is left of it."""
        self._progress += (1 - self._progress) / max(1, self.expected - self.done)
        super().advance()

    def measure(self) -> None:
        """Plan anew how many steps there are in all."""
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
    """Return a pace of so many steps, or of what fits of them into a finite number of seconds.

    Args:
        seconds: from now to the end; infinite where time is no matter.
        steps: how many, at most.
        usual: steps that the learning rate is meant for, see `TimedSchedule`.

    >>> pace_within(math.inf, 7).expected
    7
    """
    return StepSchedule(steps) if math.isinf(seconds) else TimedSchedule(seconds, steps, time.monotonic, usual)
