"""The single teacher/student training loop, shared by every framework's quantization-aware training."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from dfq_plugins.inputs import cloned, run_network
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
    """A network in training, with its framework-specific hooks.

    Args:
        model: the prepared and calibrated network; changed in place.
        scales: the parameters that are quantizer scales.
        freeze_ranges: stops range observation, for frameworks that observe ranges during training.
    """

    model: nn.Module
    scales: tuple[nn.Parameter, ...] = ()
    freeze_ranges: Callable[[], None] = _nothing


@dataclass(frozen=True)
class CheckpointDir:
    """Where a run stores its checkpoints and reports its progress.

    Args:
        folder: folder for checkpoints; None stores none.
        identity: digest of everything that the result depends on; a folder of another run is rejected.
        report: called after every step.
        ranks: the processes that train together.
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
    """Train a student in place; it ends in eval mode, in the state that scores best on the held-out examples.

    If the work folder holds a checkpoint of the same run, training resumes from it, with the same result as without
    the interruption. Without `keep_best`, the student ends in its last state, for training that deliberately trades
    accuracy for another goal.

    Returns:
        The points of the training curves, the first one before any training.

    Raises:
        ModelError: there is no parameter to train, or the outputs differ from the teacher's.
        DivergedError: the loss is not finite; the student is restored to its last good state.
        DataError: the checkpoint is damaged, belongs to another run, or cannot be written.
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
        """Resume from the checkpoint in the work folder, or evaluate the untrained student."""
        folder = self.place.folder
        found = None if folder is None else read_checkpoint(folder, self.place.identity)
        if found is None:
            self._evaluate(0.0)
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
        """Train until the schedule is complete."""
        evaluations = self._evaluations_due(self._progress(self.step))
        while not self.complete:
            progress = self._progress(self.step)
            if progress >= self.options.freeze_ranges and not self.frozen:
                self.student.freeze_ranges()
                self.frozen = True
            self._train_step(learning_rate_factor(self._progress(self.step + 0.5), self.options.warm_up))
            self.step += 1
            after = self._progress(self.step)
            self._report(after)
            # The clock also advances between steps; an evaluation that falls due there runs after the next step.
            if self._evaluations_due(after) > evaluations or after >= 1:
                evaluations, self.complete = self._evaluations_due(after), after >= 1
                self._evaluate(after)
                self._prepare_training()

    def _evaluations_due(self, progress: float) -> int:
        return int(progress * self.options.num_evaluations + 1e-9)

    def finish(self, *, keep_best: bool = True) -> tuple[TrainingPoint, ...]:
        """Restore the best state, or the last one, and return the training history."""
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

    def _train_step(self, factor: float) -> None:
        """Take one training step on the source's next batch."""
        examples = self._next_examples()
        self.optimizer.zero_grad()
        value = self._forward_backward(examples.map(lambda part: self.ranks.part(part).to(self.device)))
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
        except DivergedError:  # raised by a learning generator
            self._restore_last_good()
            raise

    def _forward_backward(self, examples: Examples) -> Tensor:
        """Return the loss of one batch, with its gradients on the student; compiled where that works."""
        if self.compiled is not None:
            # The backward pass is compiled only when it first runs, so one guard covers both passes.
            try:
                with torch.compiler.set_stance("default"):
                    return self._loss_with_gradients(self.compiled, examples)
            except DfqError:
                raise
            except Exception as error:  # noqa: BLE001  whatever the compiler raises, the uncompiled step works
                logger.warning(
                    "Compilation failed (%s: %s); continuing uncompiled.", type(error).__name__, first_line(error)
                )
                self.compiled = None
                self.optimizer.zero_grad()
        return self._loss_with_gradients(self.model, examples)

    def _loss_with_gradients(self, model: Callable[..., Any], examples: Examples) -> Tensor:
        inputs = examples.inputs
        returned = run_network(model, cloned(inputs), self.loss.spec)  # it may overwrite them
        value: Tensor = self.loss(returned, inputs, examples.labels, answers=examples.answers, targets=examples.targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    def _evaluate(self, progress: float) -> None:
        """Evaluate the student on the held-out examples, keep the best state, and write a checkpoint."""
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

    def _restore_last_good(self) -> None:
        """Restore the last good state."""
        if self.history:
            restore(self.model, self.good)
        self.model.eval()
        self.optimizer.zero_grad()

    def _diverged(self, why: str) -> None:
        """Restore the last good state and stop.

        Raises:
            DivergedError: always.
        """
        step, options = self.step, self.options
        good = self.history[-1].step if self.history else 0
        self._restore_last_good()
        kept = "" if self.place.folder is None else f" Its checkpoint is in {self.place.folder}."
        raise DivergedError(
            f"Training diverged: {why} at step {step + 1} of {options.steps} (learning rate "
            f"{options.weight_rate}, scales {options.scale_learning_rate}). The student was restored to its state "
            f"after step {good}.{kept} Lower learning_rate or scale_learning_rate, or set gradient_clip, and train "
            "in another work folder."
        )
