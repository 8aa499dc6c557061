"""The forms of data that calibration tools accept: a forward loop, a data reader, a representative data set."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Protocol

import torch

from dfq_plugins.inputs import leaves, moved
from dfq_plugins.model_state import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np
    from torch import nn

    from dfq_plugins.types import Inputs, Specification


class BatchedInputs(Protocol):
    """Samples that a calibration tool can read in batches repeatedly."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batches(self, batch_size: int = 64) -> Iterator[Inputs]:
        """Return an iterator over all inputs in order, `(batch, *shape)`."""
        ...


def run_forward_loop(model: nn.Module, batches: Iterable[Inputs], spec: Specification) -> None:
    """Run `model` on every batch without gradients, so that its observers see the data.

    The specification says how the model takes its inputs. Batches are moved to the device of the model's first
    parameter or buffer; the model's mode does not change.
    """
    device = device_of(model)
    # Not inference_mode: observers would keep inference tensors, which later training could not modify.
    with torch.no_grad():
        for batch in batches:
            spec.run(model, moved(batch, device))


class CalibrationDataReader:
    """onnxruntime's `CalibrationDataReader`, without importing onnxruntime, which duck-types on `get_next`."""

    def __init__(self, data: BatchedInputs, names: Mapping[str, str], batch_size: int) -> None:
        self._data = data
        self._names = names
        self._batch_size = batch_size
        self.set_range(0, len(self))

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self._data) / self._batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the remaining batches."""
        return iter(self.get_next, None)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch as `{input name: float32 array}`, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else self._named(batch)

    def get_first(self) -> dict[str, np.ndarray]:
        """Return the first batch without moving on, for NVIDIA ModelOpt, which tries a file on it."""
        return self._named(next(iter(self._data.batches(self._batch_size))))

    def rewind(self) -> None:
        """Start again at the first batch."""
        self.set_range(0, len(self))

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with batches `start_index` up to `end_index`, for onnxruntime's strided calibration."""
        self._batches = itertools.islice(self._data.batches(self._batch_size), start_index, end_index)

    def _named(self, batch: Inputs) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in zip(self._names.values(), leaves(batch), strict=True)}


def representative_dataset(data: BatchedInputs, batch_size: int) -> Callable[[], Iterator[list[np.ndarray]]]:
    """Return a function that yields all inputs of `data` on every call, each batch as a list of one array per input."""

    def batches() -> Iterator[list[np.ndarray]]:
        for batch in data.batches(batch_size):
            yield [tensor.numpy() for tensor in leaves(batch)]

    return batches
