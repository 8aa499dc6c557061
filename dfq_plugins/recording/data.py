"""The data that a model's owner records: batches of inputs, with labels or without, read once."""

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
"""A tensor of samples, a pair (inputs, labels) of tensors, or batches: tensors, `Batch` records, (inputs, labels)."""

BATCH_SIZE = 256
LABEL_NAMES = ("labels", "targets", "y", "y_test", "y_train")
"""Names under which an .npz file is searched for labels, in this order."""
_PAIR = 2


def labeled_batches(
    data: RecordingData, spec: InputSpec, labels: Literal["auto", "teacher"]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield inputs `(batch, *shape)` in float32 and labels `(batch,)`, or None where there are none to be used.

    Raises:
        UsageError: a batch of another shape, or something that is no batch.
        DataError: values that are not finite, labels that are no classes of the network, or in some batches alone.
    """
    labeled: set[bool] = set()
    for item in _items(data):
        inputs, given = _split(item)
        if not len(inputs):
            continue
        if not inputs.is_floating_point():
            raise DataError(f"Data to record are network inputs, floating point, got {inputs.dtype}. Normalize first.")
        spec.check_batch(inputs)
        if labels == "auto":
            labeled.add(given is not None)
            if len(labeled) > 1:
                raise DataError("Some batches have labels and some have none. Give all, or choose labels=teacher.")
        yield inputs.detach().float(), _checked(given, len(inputs), spec) if labels == "auto" else None


def count_samples(data: RecordingData) -> int:
    """Return how many samples there are, or 0 where only reading them would tell."""
    if _is_pair(data):
        return len(data[0])
    if isinstance(data, Tensor):
        return len(data)
    whole = getattr(data, "dataset", None)  # of a DataLoader
    return len(whole) if isinstance(whole, Sized) else 0


class LabelledFile:
    """The batches of a folder of images, an .npz file or a synthetic set; an .npz file may hold labels as well.

    Args:
        path: the file or folder.
        spec: what an input looks like.

    Raises:
        DataError: the path holds none of these, or samples and labels that do not fit together.
    """

    def __init__(self, path: Path, spec: InputSpec) -> None:
        self._path = path
        self._batches = load_source(path, spec)
        self._labels = _npz_labels(path)
        self.dataset = self._labels if self._labels is not None else ()  # as a DataLoader says how many samples it has

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """Yield inputs, or inputs and labels."""
        labels, done = self._labels, 0
        for batch in self._batches:
            done += len(batch)
            yield batch if labels is None else (batch, labels[done - len(batch) : done])
        if labels is not None and len(labels) != done:
            raise DataError(
                f"{self._path} holds {done} samples and {len(labels)} labels. Give one label for each sample."
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
        raise DataError(
            f"{path} holds labels of type {array.dtype}. Give class numbers, one whole number for each sample."
        )
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
            f"Data to record is a tensor, a pair (inputs, labels), or an iterable of batches, got "
            f"{type(data).__name__}. Give e.g. a DataLoader."
        )


def _is_pair(data: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Tell a pair (inputs, labels) of whole tensors from two batches of inputs."""
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
        raise UsageError(f"A batch is a tensor, or a tuple that begins with one, got {type(item).__name__}.")
    given = parts[1] if len(parts) > 1 else None
    return parts[0], given if isinstance(given, Tensor) else None


def _checked(labels: Tensor | None, size: int, spec: InputSpec) -> Tensor | None:
    if labels is None:
        return None
    classes = spec.num_classes or 0
    if labels.shape != (size,) or labels.is_floating_point():
        raise DataError(
            f"Labels are one whole number for each of the {size} samples, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Give class numbers, or choose labels=teacher."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"The network has the classes 0 to {classes - 1}, and the labels lie between {int(labels.min())} and "
            f"{int(labels.max())}. Give the classes of this network, or choose labels=teacher."
        )
    return labels.detach().long()
