"""The forms of data that calibration tools accept: a forward loop, a data reader, a representative data set."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    import torch
    from torch import nn


class BatchedInputs(Protocol):
    """Samples that a calibration tool can read in batches repeatedly."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batches(self, batch_size: int = 64) -> Iterator[torch.Tensor]:
        """Return an iterator over all inputs in order, `(batch, *shape)`."""
        ...


def run_forward_loop(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Run `model` on every batch without gradients, so that its observers see the data.

    Batches are moved to the device of the model's first parameter or buffer; the model's mode does not change.
    """
    import torch  # noqa: PLC0415  heavy

    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if first is None else first.device
    # Not inference_mode: observers would keep inference tensors, which later training could not modify.
    with torch.no_grad():
        for batch in batches:
            model(batch.to(device))


class CalibrationDataReader:
    """onnxruntime's `CalibrationDataReader`, without importing onnxruntime, which duck-types on `get_next`."""

    def __init__(self, data: BatchedInputs, input_name: str, batch_size: int) -> None:
        self._data = data
        self._name = input_name
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
        return None if batch is None else {self._name: batch.numpy()}

    def rewind(self) -> None:
        """Start again at the first batch."""
        self.set_range(0, len(self))

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with batches `start_index` up to `end_index`, for onnxruntime's strided calibration."""
        self._batches = itertools.islice(self._data.batches(self._batch_size), start_index, end_index)


def representative_dataset(data: BatchedInputs, batch_size: int) -> Callable[[], Iterator[list[np.ndarray]]]:
    """Return a function that yields all inputs of `data` on every call, each batch as a list of one array."""

    def batches() -> Iterator[list[np.ndarray]]:
        for batch in data.batches(batch_size):
            yield [batch.numpy()]

    return batches
