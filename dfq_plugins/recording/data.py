"""The data to record: batches of inputs, with or without labels, read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from dfq_plugins.data.readers import load_source
from dfq_plugins.errors import DataError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import InputSpec

RecordingData: TypeAlias = Tensor | Iterable[Any]
"""A tensor of samples, a pair `(inputs, labels)` of tensors, or batches: tensors, `Batch` records or such pairs."""

BATCH_SIZE = 256
LABEL_NAMES = ("labels", "targets", "y", "y_test", "y_train")
"""Names of the labels in an .npz file, tried in this order."""
_PAIR = 2


def labeled_batches(
    data: RecordingData, spec: InputSpec, labels: Literal["auto", "teacher"]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield inputs `(batch, *shape)` in float32 and labels `(batch,)`, or None without labels.

    Raises:
        UsageError: a batch has another shape, or an item is not a batch.
        DataError: a value is not finite, a label is not a class of the network, or only some batches have labels.
    """
    labeled: set[bool] = set()
    for item in _items(data):
        inputs, given = _split(item)
        if not len(inputs):
            continue
        if not inputs.is_floating_point():
            raise DataError(f"Record floating-point network inputs, got {inputs.dtype}. Normalize the data first.")
        spec.check_batch(inputs)
        if labels == "auto":
            labeled.add(given is not None)
            if len(labeled) > 1:
                raise DataError("Some batches have labels and some do not. Label all batches, or set labels=teacher.")
        yield inputs.detach().float(), _checked_labels(given, len(inputs), spec) if labels == "auto" else None


def count_samples(data: RecordingData) -> int:
    """Return the number of samples, or 0 if it is unknown without reading them."""
    if _is_pair(data):
        return len(data[0])
    if isinstance(data, Tensor):
        return len(data)
    dataset = getattr(data, "dataset", None)  # of a DataLoader
    return len(dataset) if isinstance(dataset, Sized) else 0


class LabelledFile:
    """The batches of a folder of images, an .npz file or a synthetic set; an .npz file may also hold labels.

    Args:
        path: the file or folder.
        spec: the input specification.

    Raises:
        DataError: the path holds none of these, or the numbers of samples and labels differ.
    """

    def __init__(self, path: Path, spec: InputSpec) -> None:
        self._path = path
        self._batches = load_source(path, spec)
        self._labels = _npz_labels(path)
        self.dataset = self._labels if self._labels is not None else ()  # for count_samples, as in a DataLoader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """Yield inputs, or inputs and labels."""
        labels, done = self._labels, 0
        for batch in self._batches:
            done += len(batch)
            yield batch if labels is None else (batch, labels[done - len(batch) : done])
        if labels is not None and len(labels) != done:
            raise DataError(
                f"{self._path} holds {done} samples but {len(labels)} labels. Provide one label per sample."
            )


def _npz_labels(path: Path) -> Tensor | None:
    if path.suffix != ".npz" or not path.is_file():
        return None
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False) if file.read(2) == b"PK" and not file.seek(0) else None
        names = [name for name in LABEL_NAMES if loaded is not None and name in loaded.files]
        array = None if loaded is None or not names else np.asarray(loaded[names[0]])
    if array is None:
        return None
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds labels of type {array.dtype}. Provide class numbers, one integer per sample.")
    return torch.from_numpy(array.astype(np.int64))


def _items(data: RecordingData) -> Iterator[Any]:
    if _is_pair(data):
        inputs, labels = data
        yield from zip(torch.split(inputs, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)
    elif isinstance(data, Tensor):
        yield from torch.split(data, BATCH_SIZE)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        yield from data
    else:
        raise UsageError(
            f"Data to record must be a tensor, a pair (inputs, labels) or an iterable of batches, got "
            f"{type(data).__name__}. Pass e.g. a DataLoader."
        )


def _is_pair(data: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Return whether data is a pair of tensors (inputs, labels), as opposed to two batches of inputs."""
    return (
        isinstance(data, tuple)
        and len(data) == _PAIR
        and all(isinstance(part, Tensor) for part in data)
        and not data[1].is_floating_point()
        and data[1].ndim == 1
    )


def _split(item: object) -> tuple[Tensor, Tensor | None]:
    parts = item if isinstance(item, (tuple, list)) else (item,)
    if not parts or not isinstance(parts[0], Tensor):
        raise UsageError(f"A batch must be a tensor, or a tuple that starts with one, got {type(item).__name__}.")
    given = parts[1] if len(parts) > 1 else None
    return parts[0], given if isinstance(given, Tensor) else None


def _checked_labels(labels: Tensor | None, size: int, spec: InputSpec) -> Tensor | None:
    if labels is None:
        return None
    classes = spec.num_classes or 0
    if labels.shape != (size,) or labels.is_floating_point():
        raise DataError(
            f"Labels must be one integer for each of the {size} samples, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Provide class numbers, or set labels=teacher."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"The network has classes 0 to {classes - 1}, but the labels range from {int(labels.min())} to "
            f"{int(labels.max())}. Provide classes of this network, or set labels=teacher."
        )
    return labels.detach().long()
