"""The one teacher/student loop, on which every framework's quantization-aware training runs."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation.adam import build_optimizer, set_learning_rate, set_training_mode
from dfq_plugins.distillation.evaluation import HeldOut
from dfq_plugins.distillation.history import TrainingPoint, best_point
from dfq_plugins.distillation.process_group import ProcessGroup
from dfq_plugins.distillation.schedule import Clock, learning_rate_factor
from dfq_plugins.distillation.state import (
    Checkpoint,
    capture,
    capture_optimizer,
    read_checkpoint,
    restore,
    restore_optimizer,
    write_checkpoint,
)
from dfq_plugins.errors import DfqError, DivergedError, first_line
from dfq_plugins.model_state import device_of
from dfq_plugins.types import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.loss import DistillationLoss
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.distillation.sources import BatchSource

logger = logging.getLogger(__name__)


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Student:
    """A network in training, with what its framework tells of it.

    Args:
        model: the prepared and calibrated network; changed in place.
        scales: those of its parameters that are quantizer scales.
        freeze_ranges: stops the observation of ranges, where the framework observes them while it trains.
    """

    model: nn.Module
    scales: tuple[nn.Parameter, ...] = ()
    freeze_ranges: Callable[[], None] = _nothing


@dataclass(frozen=True)
class CheckpointDir:
    """Where a run keeps its checkpoints, and whom it reports to.

    Args:
        folder: for the checkpoints; None keeps none.
        identity: digest of everything that the result depends on; a folder of another run is refused.
        report: hears of every step.
        ranks: this process among those that train together.
    """

    folder: Path | None = None
    identity: str = ""
    report: Callable[[ProgressEvent], None] = _nothing
    ranks: ProcessGroup = field(default_factory=ProcessGroup)


def train_student(
    student: Student,
    loss: DistillationLoss,
    source: BatchSource,
    held_out: Examples,
    options: TrainingOptions,
    place: CheckpointDir | None = None,
    *,
    keep_best: bool = True,
) -> tuple[TrainingPoint, ...]:
    """Train a student in place; it ends in the best state by the held-out examples, in eval mode.

    Where the work folder holds a checkpoint of the same run, the training goes on from there, to the same result as
    without the interruption. Without `keep_best` the student ends in its last state, for a training that is to change
    it at the cost of its answers.

    Returns:
        The points of its curves, the first before any training.

    Raises:
        ModelError: no parameter to train, or outputs of another shape than the teacher's.
        DivergedError: a loss that is not finite; the student holds its last good state.
        DataError: a checkpoint that is damaged or of another run, or cannot be written.
    """
    training = _Training(
        student, loss, source, HeldOut(held_out, loss, options.batch_size), options, place or CheckpointDir()
    )
    training.begin()
    training.run()
    return training.finish(keep_best=keep_best)


class _Training:
    """The state of one run of `train_student`."""

    def __init__(
        self,
        student: Student,
        loss: DistillationLoss,
        source: BatchSource,
        held_out: HeldOut,
        options: TrainingOptions,
        place: CheckpointDir,
    ) -> None:
        self.student, self.loss, self.source, self.held_out = student, loss, source, held_out
        self.options, self.place, self.ranks = options, place, place.ranks
        self.model = student.model
        self.device = device_of(self.model)
        self.optimizer = build_optimizer(self.model, student.scales, options)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.history: tuple[TrainingPoint, ...] = ()
        self.step, self.frozen, self.complete = 0, False, False
        self.losses: list[float] = []
        self.clock = Clock(options.steps, options.max_seconds)
        self.compiled = torch.compile(self.model, dynamic=False) if options.compile else None

    def begin(self) -> None:
        """Take up the checkpoint in the work folder, or look at the student as it came."""
        folder = self.place.folder
        found = None if folder is None else read_checkpoint(folder, self.place.identity)
        if found is None:
            self._look(0.0)
            self._prepare_training()
            return
        restore(self.model, found.tensors["student"])
        restore_optimizer(self.optimizer, found.tensors.get("optimizer", {}))
        self.source.restore(found.tensors.get("source", {}))
        self.good = capture(self.model)
        self.best = found.tensors.get("best", self.good)
        self.step, self.history, self.complete = found.step, found.history, found.complete
        self.clock = Clock(self.options.steps, self.options.max_seconds, found.seconds)
        self._prepare_training()

    def run(self) -> None:
        """Take steps until the schedule is through."""
        looked = self._looks_due(self._progress(self.step))
        while not self.complete:
            progress = self._progress(self.step)
            if progress >= self.options.freeze_ranges and not self.frozen:
                self.student.freeze_ranges()
                self.frozen = True
            self._learn(learning_rate_factor(self._progress(self.step + 0.5), self.options.warm_up))
            self.step += 1
            after = self._progress(self.step)
            self._report(after)
            # The clock runs on between two steps: what it passed there is looked at after the next one.
            if self._looks_due(after) > looked or after >= 1:
                looked, self.complete = self._looks_due(after), after >= 1
                self._look(after)
                self._prepare_training()

    def _looks_due(self, progress: float) -> int:
        return int(progress * self.options.num_evaluations + 1e-9)

    def finish(self, *, keep_best: bool = True) -> tuple[TrainingPoint, ...]:
        """Bring the best state back, or the last one, and return the curves."""
        restore(self.model, self.best if keep_best else self.good)
        self.model.eval()
        self.optimizer.zero_grad()
        return self.history

    def _prepare_training(self) -> None:
        set_training_mode(self.model, batch_norm_frozen=self.options.batch_norm != "reestimated")

    def _progress(self, step: float) -> float:
        if self.options.max_seconds is None:
            return self.clock.progress(step)
        return self.clock.progress(step, self.ranks.same_number(self.clock.seconds))

    def _learn(self, factor: float) -> None:
        """Take one step on the source's next batch."""
        examples = self._next_examples()
        self.optimizer.zero_grad()
        inputs, labels, answers = (self._mine(part) for part in (examples.inputs, examples.labels, examples.answers))
        assert inputs is not None  # noqa: S101  for the type checker: a batch has inputs
        value = self._both_passes(inputs, labels, answers)
        mean = float(self.ranks.average_gradients(self.parameters, value))
        if not math.isfinite(mean):
            self._diverged(f"the loss was {mean}")
        if self.options.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.options.gradient_clip)
        set_learning_rate(self.optimizer, factor)
        self.optimizer.step()
        self.losses.append(mean)

    def _next_examples(self) -> Examples:
        try:
            return self.source.batch(self.step, self.model, self._progress(self.step))
        except DivergedError:  # of a generator that learns
            self._put_back()
            raise

    def _mine(self, part: Tensor | None) -> Tensor | None:
        return None if part is None else self.ranks.part(part).to(self.device)

    def _both_passes(self, inputs: Tensor, labels: Tensor | None, answers: Tensor | None) -> Tensor:
        """Return the loss of one batch, with its gradients on the student; compiled where that works."""
        if self.compiled is not None:
            # The compiler works on both passes, the backward one when it is first asked for: guard them together.
            try:
                return self._differentiated(self.compiled, inputs, labels, answers)
            except DfqError:
                raise
            except Exception as error:  # noqa: BLE001  whatever the compiler raises, the uncompiled step is right
                logger.warning(
                    "Compilation failed (%s: %s); continuing uncompiled.", type(error).__name__, first_line(error)
                )
                self.compiled = None
                self.optimizer.zero_grad()
        return self._differentiated(self.model, inputs, labels, answers)

    def _differentiated(
        self, model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor | None, answers: Tensor | None
    ) -> Tensor:
        value: Tensor = self.loss(model(inputs), inputs, labels, answers=answers)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    def _look(self, progress: float) -> None:
        """Judge the student by the held-out examples, keep the best state, and write a checkpoint."""
        self.ranks.average_statistics(self.model)
        found = self.held_out.judge(self.model)
        if not math.isfinite(found.loss):
            self._diverged(f"the held-out loss was {found.loss}")
        rate = self.options.weight_rate * learning_rate_factor(progress, self.options.warm_up)
        mean = sum(self.losses) / len(self.losses) if self.losses else None
        self.losses = []
        self.history += (
            TrainingPoint(self.step, self.clock.seconds, rate, mean, found.loss, found.agreement, found.error),
        )
        self.good = capture(self.model)
        if best_point(self.history) is self.history[-1]:
            self.best = self.good
        if self.place.folder is not None and self.ranks.leads:
            write_checkpoint(self.place.folder, self._checkpoint())

    def _checkpoint(self) -> Checkpoint:
        tensors = {
            "student": self.good,
            "best": {} if self.best is self.good else self.best,
            "optimizer": capture_optimizer(self.optimizer),
            "source": self.source.capture(),
        }
        return Checkpoint(self.place.identity, self.step, self.clock.seconds, self.complete, self.history, tensors)

    def _report(self, progress: float) -> None:
        metrics = {"loss": self.losses[-1], "held_out": self.history[-1].held_out_loss}
        total = self.options.steps
        self.place.report(ProgressEvent("finetune", min(round(progress * total), total), total, metrics))

    def _put_back(self) -> None:
        """Bring the last good state back."""
        if self.history:
            restore(self.model, self.good)
        self.model.eval()
        self.optimizer.zero_grad()

    def _diverged(self, why: str) -> None:
        """Bring the last good state back and stop.

        Raises:
            DivergedError: always.
        """
        step, options = self.step, self.options
        good = self.history[-1].step if self.history else 0
        self._put_back()
        kept = "" if self.place.folder is None else f" Its checkpoint is in {self.place.folder}."
        raise DivergedError(
            f"The training diverged: {why} at step {step + 1} of {options.steps} (learning rate "
            f"{options.weight_rate}, scales {options.scale_learning_rate}). The student was put back to its state "
            f"after step {good}.{kept} Lower learning_rate or scale_learning_rate, or set gradient_clip, and train "
            "into another work folder."
        )
