"""The report section on a training: loss curves, and the agreement before and after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dfq_plugins.distillation.history import best_point
from dfq_plugins.network.agreement import FEWEST_SAMPLES
from dfq_plugins.report.content import Curves, Facts, Section, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.quantization.finetune import FinetuneRun

STATE_KEPT = "The model kept is the latest state whose held-out divergence is within one standard error of the lowest."
"""Sentence for any training."""


def training_curves(history: Sequence[TrainingPoint]) -> Curves:
    """Return the training loss and the divergence on held-out samples over the steps.

    >>> from dfq_plugins.distillation.history import TrainingPoint
    >>> start, end = TrainingPoint(0, 0.0, 0.0, None, 0.5, 0.8), TrainingPoint(9, 4.0, 0.0, 1.5, 0.25, 0.9)
    >>> [label for label, _, _ in training_curves([start, end]).series]
    ['training loss', 'held-out divergence']
    """
    known = [(float(point.step), point.loss) for point in history if point.loss is not None]
    across = tuple(step for step, _ in known)
    losses = ("training loss", across, tuple(loss for _, loss in known))
    steps = tuple(float(point.step) for point in history)
    held_out = ("held-out divergence", steps, tuple(point.held_out_loss for point in history))
    caption = (
        "The training loss is the weighted sum of its terms; the divergence is measured on samples that are not used "
        "for training. Look at how each of them falls, not at which is lower."
    )
    return Curves((losses, held_out), "training steps", "loss (log scale, lower is better)", caption, logarithmic=True)


def few(samples: int) -> str:
    """Return what to add to a caption where a share of this many samples says too little."""
    return ": too few to tell" if samples < FEWEST_SAMPLES else ""


def training_table(run: FinetuneRun) -> Table:
    """Return the table of the network's states, from calibration to the state that was kept."""
    best = best_point(run.history)
    rows = [("after calibration only", 0.0, run.history[0].held_out_loss, _percent(run.agreement_before))]
    rows += [
        (f"step {p.step}", p.seconds, p.held_out_loss, _percent(p.agreement)) for p in run.history[1:] if p is best
    ]
    rows.append(("finished model", run.history[-1].seconds, None, _percent(run.agreement)))  # type: ignore[arg-type]
    columns = ("State", "Seconds of training", "Divergence from the float network", "Same class, %")
    caption = f"Measured on {run.held_out} synthetic samples that were not used for training{few(run.held_out)}"
    return Table(columns, tuple(rows), caption=caption, decimals=3)


def training_section(run: FinetuneRun) -> Section:
    """Return the section on the training of a fine-tuned network."""
    text = (
        "After calibration, the quantized network was trained to reproduce the float network's outputs, using only "
        f"synthetic samples. {STATE_KEPT}"
    )
    terms = {name: value for name, value in vars(run.training).items() if name.endswith("_weight") and value}
    facts = Facts(tuple((name, f"{value:g}") for name, value in terms.items()), "Terms of the loss", folded=True)
    return Section("Fine-tuning progress", (text,), (training_table(run), training_curves(run.history), facts))


def _percent(share: float | None) -> float | None:
    return None if share is None or math.isnan(share) else 100 * share
