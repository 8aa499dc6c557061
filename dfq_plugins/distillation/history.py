"""The history of a training run: the points of its curves, as plain JSON-serializable records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingPoint:
    """One evaluation of a student during its training.

    Args:
        step: training steps so far.
        seconds: seconds of training so far, including evaluations and earlier parts of a resumed run.
        learning_rate: the option's value times the current factor of the schedule.
        loss: mean training loss since the previous point; None at the start.
        held_out_loss: divergence from the teacher on held-out data, lower is better.
        agreement: share of held-out samples for which the student predicts the teacher's class; None if the network is
            not a classifier.
        held_out_error: standard error of the held-out loss.
    """

    step: int
    seconds: float
    learning_rate: float
    loss: float | None
    held_out_loss: float
    agreement: float | None
    held_out_error: float = 0.0


def best_point(history: tuple[TrainingPoint, ...]) -> TrainingPoint:
    """Return the last point whose held-out loss is within one standard error of the lowest.

    Held-out sets are small, so the very lowest loss is often luck, and a later state is usually better.
    Source: the one-standard-error rule of Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3.

    >>> losses = (2.0, 1.0, 1.2, 1.05, 1.2)
    >>> points = [TrainingPoint(step, 0.0, 0.0, None, loss, None, 0.1) for step, loss in enumerate(losses)]
    >>> best_point(tuple(points)).step
    3
    """
    lowest = min(history, key=lambda point: point.held_out_loss)
    highest = lowest.held_out_loss + lowest.held_out_error
    return next(point for point in reversed(history) if point.held_out_loss <= highest)
