"""What a training run left behind: the points of its curves, as plain records that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingPoint:
    """One look at a student during its training.

    Args:
        step: training steps so far.
        seconds: seconds of training so far, evaluations and earlier parts of a resumed run included.
        learning_rate: the option's value times where the schedule stands.
        loss: mean training loss since the point before; None at the start.
        held_out_loss: divergence from the teacher on held-out data, lower is better.
        agreement: share of held-out data with the teacher's class; None where the network is no classifier.
    """

    step: int
    seconds: float
    learning_rate: float
    loss: float | None
    held_out_loss: float
    agreement: float | None


def best_point(history: tuple[TrainingPoint, ...]) -> TrainingPoint:
    """Return the point of the lowest held-out loss, the earliest of equals.

    >>> points = [TrainingPoint(step, 0.0, 0.0, None, loss, None) for step, loss in ((0, 2.0), (1, 1.0), (2, 1.0))]
    >>> best_point(tuple(points)).step
    1
    """
    return min(history, key=lambda point: point.held_out_loss)
