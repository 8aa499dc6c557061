"""Base class of the record generators; subclasses define the target activations."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch

from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.generators.inversion import balanced_labels, even_split, within
from dfq_plugins.generators.noise import Noise, draw_noise
from dfq_plugins.model_state import device_of
from dfq_plugins.recording.record import ActivationRecord
from dfq_plugins.recording.units import UnitReader
from dfq_plugins.statistics.augmentation import apply_maps
from dfq_plugins.synthesis.loop import optimize_inputs
from dfq_plugins.synthesis.schedule import pace_within
from dfq_plugins.types import Batch, DataGenerator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from dfq_plugins.recording.generator_options import RecordOptions
    from dfq_plugins.recording.options import Statistic
    from dfq_plugins.statistics.augmentation import AxisMaps
    from dfq_plugins.synthesis.schedule import StepSchedule
    from dfq_plugins.types import InputSpec, ProgressEvent, TimeBudget

Loss: TypeAlias = "Callable[[list[Tensor]], Tensor]"
"""The distance of each layer's units `(batch, units)`, the output last, from their targets."""


class RecordGenerator(DataGenerator):
    """Rebuilds inputs whose activations match those in a record; works without BatchNorm.

    Args:
        options: the record and the schedule.

    Raises:
        UsageError: no record is given.
    """

    timed = True
    conditional = True
    statistic: ClassVar[Statistic]
    """The statistic that the record must hold."""

    def __init__(self, options: RecordOptions) -> None:
        if not options.record:
            raise UsageError(
                "A record generator needs a record: set the option record=FOLDER. The model's owner makes it with dfq "
                "record. Without a record, bns, inception and gaussian need only the model."
            )
        self.options = options
        self.keeps_range = options.clamp
        self._record: ActivationRecord | None = None

    @property
    def record(self) -> ActivationRecord:
        """The record, read when it is first needed.

        Raises:
            DataError: it is missing or damaged, lacks the statistic of this generator, or has another checksum.
        """
        if self._record is None:
            record = ActivationRecord.open(Path(self.options.record))
            wanted, found = self.options.record_sha256, record.info.sha256
            if wanted not in {"", found}:
                raise DataError(
                    f"The record {record.folder} has changed: its SHA-256 is {found}, but record_sha256 requires "
                    f"{wanted}. Use the record that the set was started with, or choose another output folder."
                )
            record.require(self.statistic)
            self._record = record
        return self._record

    def resolved_options(self, options: RecordOptions) -> RecordOptions:
        """Return the options with the record's checksum, so that they identify the record by its contents."""
        return replace(options, record_sha256=self.record.info.sha256)

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Reject a model or specification that the record was not made with, before anything is written.

        Raises:
            DataError: the record is missing or damaged, or holds other statistics.
            ModelError: the record was made from another model, or the shape of a layer differs.
        """
        self.record.check_model(model, spec)

    @abstractmethod
    def aim(self, labels: Tensor, rng: torch.Generator) -> tuple[Loss, Mapping[str, Tensor]]:
        """Draw the target activations of one batch.

        Args:
            labels: class of each input, `(batch,)`.
            rng: source of the draw.

        Returns:
            The loss, and the dropout filter to apply to the network; empty for none.
        """

    def generate(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
        budget: TimeBudget | None = None,
    ) -> Iterator[Batch]:
        """Yield exactly `num_samples` rebuilt inputs with their target classes.

        Each batch has its own noise, targets and optimizer. With a time budget, the number of iterations is chosen to
        fit it, and is stored in the budget.

        Raises:
            DataError: the record is missing or damaged, or holds other statistics.
            ModelError: the record was made from another model.
            DivergedError: the loss is not finite.
        """
        end = math.inf if budget is None else time.monotonic() + budget.seconds
        self.check_supported(model, spec)
        sizes = even_split(num_samples, min(batch_size, self.options.step_samples or batch_size))
        parts = torch.split(balanced_labels(num_samples, spec.num_classes, rng), sizes)
        for number, labels in enumerate(parts):
            pace = pace_within((end - time.monotonic()) / (len(parts) - number), self.options.iterations)
            yield self._rebuild(model, spec, labels, rng, within(report, number, len(parts)), pace)
            if budget is not None:
                budget.iterations = min(pace.done, budget.iterations or pace.done)

    def _rebuild(
        self,
        model: nn.Module,
        spec: InputSpec,
        labels: Tensor,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
        pace: StepSchedule,
    ) -> Batch:
        options, device = self.options, device_of(model)
        low, span = _start_and_span(spec)
        noise = Noise(low + options.start_mean * span, options.start_std * span)
        bounded = spec if options.clamp else replace(spec, value_range=None)
        inputs = draw_noise(bounded, len(labels), noise, rng, device)
        loss, masks = self.aim(labels, rng)
        moved = {name: mask.to(device) for name, mask in masks.items()}
        info = self.record.info
        with UnitReader(
            model, self.record.hidden, units=info.units, temperature=info.temperature, masks=moved
        ) as reader:
            objective = RecordObjective(reader, loss)
            optimize_inputs([inputs], [labels], objective, spec, options, rng, report, scale=span, pace=pace)
        return Batch(inputs.detach(), labels.to(device))


class RecordObjective:
    """The loss of one batch's units, as an objective of the shared loop.

    Args:
        reader: reads the units of the network; it must be open.
        loss: the loss as a function of these units.
    """

    def __init__(self, reader: UnitReader, loss: Loss) -> None:
        self._reader = reader
        self._loss = loss

    def __call__(
        self,
        inputs: Tensor,
        labels: Tensor,  # noqa: ARG002  already part of the loss
        rest: tuple[Tensor, float] | None,  # noqa: ARG002  batches are independent
        maps: AxisMaps = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the gradient of the inputs, and an empty pool, all detached."""
        leaf = inputs.detach().requires_grad_()
        loss = self._loss(self._reader.read(apply_maps(leaf, maps, leaf.new_zeros(leaf.shape[1]))))
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient, self.empty_pool()

    def empty_pool(self) -> Tensor:
        """Return an empty pool, in the shape that the loop expects."""
        return torch.zeros(2, 0)

    def rest_of(self, pools: list[Tensor], index: int) -> tuple[Tensor, float] | None:  # noqa: ARG002
        """Return None: batches are independent."""
        return None


def rectified_distance(target: Tensor, found: Tensor) -> Tensor:
    """Return `mean((ReLU(target) - ReLU(found))^2)`.

    >>> rectified_distance(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, -5.0]])).item()
    0.5
    """
    return (target.relu() - found.relu()).square().mean()


def _start_and_span(spec: InputSpec) -> tuple[float, float]:
    """Return the lowest network input and the length of the valid range; 0 and 1 if it is unknown.

    >>> from dfq_plugins.types import InputSpec
    >>> _start_and_span(InputSpec((1, 8), (0.5,), (0.25,), (0.0, 1.0)))
    (-2.0, 4.0)
    """
    if spec.input_range is None:
        return 0.0, 1.0
    return spec.input_range[0], spec.input_range[1] - spec.input_range[0]
