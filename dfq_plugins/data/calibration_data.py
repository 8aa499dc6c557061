"""Converts the calibration data that users provide to batches of inputs that can be read repeatedly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, UsageError

if TYPE_CHECKING:
    from dfq_plugins.types import InputSpec

CalibrationData: TypeAlias = SyntheticDataset | Tensor | Iterable[Any]
"""A synthetic data set, a tensor of samples, or batches: tensors, `Batch` records or `(inputs, target)` pairs."""

BATCH_SIZE = 64


@dataclass(frozen=True)
class InputBatches:
    """Batches of inputs that can be iterated repeatedly; each pass gets copies, which a network may overwrite."""

    source: SyntheticDataset | Sequence[Tensor]
    spec: InputSpec | None

    def __iter__(self) -> Iterator[Tensor]:
        if isinstance(self.source, SyntheticDataset):
            return self.source.batches(BATCH_SIZE)
        return (batch.clone() for batch in self.source)

    def __len__(self) -> int:
        """Number of samples."""
        if isinstance(self.source, SyntheticDataset):
            return len(self.source)
        return sum(len(batch) for batch in self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(next(iter(self)).shape[1:])

    def check(self, spec: InputSpec) -> None:
        """Check that the network accepts the samples.

        Raises:
            DataError: a sample has a different shape, or a value is not finite.
        """
        for batch in self:
            spec.check_batch(batch)

    def observed(self, listener: Callable[[int], None]) -> ObservedBatches:
        """Return the same batches; `listener` is called with the number of samples read so far."""
        return ObservedBatches(self, listener)


@dataclass(frozen=True)
class ObservedBatches:
    """Batches that report how many samples have been read; they can be iterated repeatedly."""

    batches: InputBatches
    listener: Callable[[int], None]

    def __iter__(self) -> Iterator[Tensor]:
        done = 0
        for batch in self.batches:
            yield batch
            done += len(batch)
            self.listener(done)


def as_calibration_data(data: CalibrationData, spec: InputSpec | None) -> InputBatches:
    """Convert calibration data to batches of inputs.

    Args:
        data: see `CalibrationData`; an iterable other than a data set is read once and kept in memory.
        spec: the input specification; overrides that of a data set.

    Raises:
        UsageError: the data is not calibration data.
        DataError: there are no samples, or they are not floating point.
    """
    if isinstance(data, SyntheticDataset):
        return InputBatches(data, spec or data.spec)
    items = torch.split(data, BATCH_SIZE) if isinstance(data, Tensor) else _require_iterable(data)
    batches = [batch for batch in map(_inputs_of, items) if len(batch)]
    if not batches:
        raise DataError("Calibration needs at least one sample, got none. Provide a data set or batches of inputs.")
    return InputBatches(batches, spec)


def _require_iterable(data: object) -> Iterable[Any]:
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return data
    raise UsageError(
        f"Calibration data must be a SyntheticDataset, a tensor or an iterable of batches, got {type(data).__name__}. "
        "Open a folder with SyntheticDataset.open(folder)."
    )


def _inputs_of(item: object) -> Tensor:
    first = item[0] if isinstance(item, (tuple, list)) and item else item
    if not isinstance(first, torch.Tensor):
        raise UsageError(f"A batch must be a tensor, or a tuple that starts with one, got {type(item).__name__}.")
    if not first.is_floating_point():
        raise DataError(
            f"Calibration data must be floating-point network inputs, got {first.dtype}. Normalize the data first."
        )
    return first.detach().float()
