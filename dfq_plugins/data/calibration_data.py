"""Converts the calibration data that users provide to batches of inputs that can be read repeatedly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import INTEGER_INPUTS, DataError, UsageError
from dfq_plugins.inputs import cloned, count, joined, map_inputs, split
from dfq_plugins.types import NetworkSpec, as_specification

if TYPE_CHECKING:
    from dfq_plugins.types import GivenSpec, Inputs, Specification

CalibrationData: TypeAlias = SyntheticDataset | Tensor | Iterable[Any]
"""A synthetic data set, a tensor of samples, or batches: tensors, `Batch` records or `(inputs, target)` pairs.

For a network with several inputs, a dictionary of tensors by name stands for each tensor; a batch may also be a tuple
that begins with the inputs in their order.
"""

BATCH_SIZE = 64


@dataclass(frozen=True)
class InputBatches:
    """Batches of inputs that can be iterated repeatedly; each pass gets copies, which a network may overwrite."""

    source: SyntheticDataset | Sequence[Inputs]
    spec: Specification | None

    def __iter__(self) -> Iterator[Inputs]:
        if isinstance(self.source, SyntheticDataset):
            return self.source.batches(even_size(len(self.source)))
        return map(cloned, self.source)

    def __len__(self) -> int:
        """Number of samples."""
        if isinstance(self.source, SyntheticDataset):
            return len(self.source)
        return sum(count(batch) for batch in self.source)

    @property
    def shape(self) -> Any:
        """Shape of one sample; by name where there are several inputs."""
        return map_inputs(lambda tensor: tuple(tensor.shape[1:]), next(iter(self)))

    def check(self, spec: Specification) -> None:
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

    def __iter__(self) -> Iterator[Inputs]:
        done = 0
        for batch in self.batches:
            yield batch
            done += count(batch)
            self.listener(done)


def as_calibration_data(data: CalibrationData, spec: GivenSpec | None) -> InputBatches:
    """Convert calibration data to batches of inputs.

    Args:
        data: see `CalibrationData`; an iterable other than a data set is read once and kept in memory.
        spec: the input specification; overrides that of a data set.

    Raises:
        UsageError: the data is not calibration data.
        DataError: there are no samples, or they are not floating point.
    """
    spec = as_specification(spec)
    if isinstance(data, SyntheticDataset):
        return InputBatches(data, spec or data.spec)
    items = split(data, even_size(count(data))) if _is_batch(data) else _require_iterable(data)
    batches = _evened([batch for batch in (_inputs_of(item, spec) for item in items) if count(batch)])
    if not batches:
        raise DataError("Calibration needs at least one sample, got none. Provide a data set or batches of inputs.")
    return InputBatches(batches, spec)


def even_size(samples: int, most: int = BATCH_SIZE) -> int:
    """Return the size of batches that are as even as possible, each of at most `most` samples.

    Frameworks average statistics over batches, so that a short last batch would weigh as much as a full one.

    >>> even_size(65), even_size(64), even_size(129)
    (33, 64, 43)
    """
    return -(-samples // -(-samples // most)) if samples else most


def _evened(batches: list[Any]) -> list[Any]:
    """Return the samples in batches that are as even as possible, none larger than the largest given."""
    sizes = [count(batch) for batch in batches]
    size = even_size(sum(sizes), max(sizes, default=BATCH_SIZE))
    if all(one == size for one in sizes[:-1]):
        return batches
    return list(split(joined(batches), size))


def _is_batch(data: object) -> bool:
    """Return whether data is one large batch: a tensor, or one per name."""
    if isinstance(data, Mapping):
        return all(isinstance(value, Tensor) for value in data.values())
    return isinstance(data, Tensor)


def _require_iterable(data: object) -> Iterable[Any]:
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping)):
        return data
    raise UsageError(
        f"Calibration data must be a SyntheticDataset, a tensor or an iterable of batches, got {type(data).__name__}. "
        "Open a folder with SyntheticDataset.open(folder)."
    )


def _inputs_of(item: object, spec: Specification | None) -> Inputs:
    """Return the inputs in one item of the data, in float32; targets that come with them are left out."""
    if isinstance(spec, NetworkSpec):
        return _by_name(item, spec)
    first = item[0] if isinstance(item, (tuple, list)) and item else item
    if isinstance(first, Mapping) and first:
        return {str(name): _floating(tensor, f"the input {name!r}") for name, tensor in first.items()}
    return _floating(first, "inputs")


def _by_name(item: object, spec: NetworkSpec) -> dict[str, Tensor]:
    """Return several inputs by name: from a dictionary, or from a tuple that begins with them in order."""
    parts = item if isinstance(item, (tuple, list)) else (item,)
    if parts and isinstance(parts[0], Mapping):
        parts = [parts[0].get(name) for name in spec.order]
    if len(parts) < len(spec.order) or any(part is None for part in parts[: len(spec.order)]):
        names = ", ".join(spec.order)
        raise UsageError(
            f"A batch must hold the inputs {names}: as a dictionary of tensors by name, or as a tuple that begins with "
            f"them in this order, got {_described(item)}. Give each input, or fix the specification."
        )
    return {name: _floating(part, f"the input {name!r}") for name, part in zip(spec.order, parts, strict=False)}


def _described(item: object) -> str:
    return f"a dictionary of {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"


def _floating(value: object, name: str) -> Tensor:
    if isinstance(value, list | tuple) and value:
        raise UsageError(
            f"A batch must be a tensor, got a list for {name}. Stack samples of one shape; for a detector, which takes "
            "a list of images, use dfq_plugins.quantize_parts(model, data, calibrator=...)."
        )
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"A batch must be a tensor, a tuple that starts with one, or a dictionary of tensors by name, got "
            f"{type(value).__name__} for {name}."
        )
    if not value.is_floating_point():
        raise DataError(
            f"Calibration data must be floating-point network inputs, got {value.dtype} for {name}. Normalize images "
            f"first. {INTEGER_INPUTS}"
        )
    return value.detach().float()
