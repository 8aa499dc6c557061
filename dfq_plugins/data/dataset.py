"""`SyntheticDataset`: the samples of a finished run as a torch Dataset, and as calibration data for every framework."""

from __future__ import annotations

import bisect
import html
import itertools
import operator
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from dfq_plugins.data.conventions import CalibrationDataReader, representative_dataset, run_forward_loop
from dfq_plugins.data.manifest import read_manifest
from dfq_plugins.data.shards import ShardCache
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.inputs import joined, rows
from dfq_plugins.types import Batch

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from torch import nn

    from dfq_plugins.data.manifest import Manifest
    from dfq_plugins.types import Inputs, Specification


class SyntheticDataset(Dataset[Batch]):
    """Synthesized samples in a folder; tensors stay on disk until they are used.

    `data[i]` is one sample: a `Batch` of an input `(*shape)`, its label and the teacher's outputs by name. The label is
    None if the set has none, and so are the outputs. Where the network has several inputs, every method below gives
    them as a dictionary by name. A data set can be pickled, and works with the workers of a
    `torch.utils.data.DataLoader`. Open one with `SyntheticDataset.open(folder)`.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, owner: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._shards = ShardCache(folder, manifest)
        self._first_indices = _first_indices([shard.num_samples for shard in manifest.shards])
        if owner is not None:
            # The finalizer keeps the directory until this object is garbage collected, then removes it without warning.
            weakref.finalize(self, owner.cleanup)

    @classmethod
    def open(cls, folder: Path | str, *, owner: tempfile.TemporaryDirectory[str] | None = None) -> Self:
        """Open the finished data set in `folder`.

        Args:
            folder: the output folder of a synthesis.
            owner: the temporary directory that contains `folder`; removed when this object is no longer used.

        Raises:
            DataError: there is no data set, its manifest is invalid or has a newer format, or its run is unfinished.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        if manifest.state != "complete":
            done = sum((folder / shard.file).is_file() for shard in manifest.shards)
            raise DataError(
                f"{folder} holds an unfinished run: {done} of {len(manifest.shards)} shards are there. Resume it with "
                f"the command that started it (dfq synthesize ... --output {folder}); it makes only the missing shards."
            )
        return cls(folder, manifest, owner=owner)

    @property
    def spec(self) -> Specification:
        """The specification of one sample."""
        return self.manifest.input_spec

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __getitem__(self, index: int) -> Batch:
        """Return one sample; a negative index counts from the end.

        Raises:
            IndexError: there is no sample at that index.
            DataError: its shard is missing or damaged.
        """
        shard, row = self._locate(index)
        sample: Batch = pytree.tree_map_only(torch.Tensor, lambda part: part[row].clone(), self._shards[shard])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Return several samples in the given order, for a DataLoader; each shard is loaded once."""
        places = [self._locate(index) for index in indices]
        by_shard = sorted(range(len(places)), key=lambda position: places[position][0])
        samples = {position: self[indices[position]] for position in by_shard}
        return [samples[position] for position in range(len(places))]

    def loader(
        self, batch_size: int = 64, *, shuffle: bool = False, seed: int | None = None, drop_last: bool = False
    ) -> DataLoader[Batch]:
        """Return a DataLoader of `Batch`: inputs `(batch, *shape)`, labels `(batch,)`, outputs by name `(batch, ...)`.

        Args:
            batch_size: maximum number of samples per batch.
            shuffle: whether to draw a new order for each pass.
            seed: seed of these orders; None uses the data set's seed. The global generator is never used.
            drop_last: whether to drop a smaller last batch.

        Raises:
            UsageError: the batch size is not positive.
        """
        # A separate generator even without shuffling: a DataLoader draws a base seed for each pass.
        rng = torch.Generator().manual_seed((self.manifest.seed if seed is None else seed) % 2**63)
        return DataLoader(
            self,
            batch_size=_require_positive(batch_size),
            shuffle=shuffle,
            drop_last=drop_last,
            generator=rng,
            collate_fn=collate,
        )

    def batches(self, batch_size: int = 64) -> Iterator[Inputs]:
        """Return an iterator over all inputs in order, `(batch, *shape)` on the CPU; the last batch may be smaller.

        Raises:
            UsageError: the batch size is not positive.
        """
        return self._batches(_require_positive(batch_size))

    def inputs(self, limit: int | None = None) -> Inputs:
        """Return the first `limit` inputs, or all, as one tensor `(samples, *shape)`.

        Raises:
            UsageError: the limit is not positive.
        """
        return self._range(0, len(self) if limit is None else min(len(self), _require_positive(limit, "limit")))

    def forward_loop(self, model: nn.Module, batch_size: int = 64) -> None:
        """Run `model` on every sample without gradients, on the model's device and in its current mode.

        This is the calibration loop of torch.ao, torchao, pytorch-quantization, ModelOpt and Brevitas.
        """
        run_forward_loop(model, self.batches(batch_size), self.spec)

    def calibration_data_reader(
        self, input_name: str | Mapping[str, str] | None = None, batch_size: int = 1
    ) -> CalibrationDataReader:
        """Return a reader of the samples for calibration with `onnxruntime.quantization`.

        Args:
            input_name: name of the ONNX graph's input; None means "input". For several inputs, the graph's names by the
                names in the specification; None means that they are the same.
            batch_size: samples per run; must match the graph if its batch size is fixed.

        Raises:
            UsageError: the batch size is not positive, or the names do not fit the inputs.
        """
        return CalibrationDataReader(self, _graph_names(self.spec, input_name), _require_positive(batch_size))

    def representative_dataset(self, batch_size: int = 1) -> Callable[[], Iterator[list[np.ndarray]]]:
        """Return a function that yields all samples on every call, each batch as a list of one float32 array per input.

        TFLite-style converters and Sony's Model Compression Toolkit calibrate with this form. Channels come first.
        """
        return representative_dataset(self, _require_positive(batch_size))

    def verify(self) -> None:
        """Check the file of every shard against the manifest.

        Raises:
            DataError: a shard is missing or damaged; the message names it and both checksums.
        """
        for index in range(len(self.manifest.shards)):
            self._shards.check(index)

    def __repr__(self) -> str:
        return "SyntheticDataset(" + ", ".join(f"{name}={value!r}" for name, value in self._summary().items()) + ")"

    def _repr_html_(self) -> str:
        from dfq_plugins.data import notebook  # noqa: PLC0415  Pillow, for notebooks only

        try:
            samples = [self[index] for index in range(min(notebook.SHOWN, len(self)))]
            counts = "" if self.manifest.labels == "none" else notebook.class_counts_html(self._labels())
        except DataError as error:  # damaged shards: show the message instead of the samples
            return notebook.dataset_html(self._summary(), f"<p>{html.escape(str(error))}</p>")
        return notebook.dataset_html(self._summary(), counts + notebook.samples_html(samples, self.spec))

    def _labels(self) -> torch.Tensor:
        return torch.cat([batch.labels for batch in self.loader(batch_size=256) if batch.labels is not None])

    def _summary(self) -> dict[str, object]:
        manifest = self.manifest
        return {
            "num_samples": len(self),
            "shape": self.spec.shape,
            "generator": manifest.generator.name,
            "labels": manifest.labels,
            "seed": manifest.seed,
            "shards": len(manifest.shards),
            "folder": str(self.folder),
        }

    def _locate(self, index: int) -> tuple[int, int]:
        """Return a sample's shard and its row in that shard."""
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"The data set has {len(self)} samples, so index {position} is out of range.")
        position %= len(self)
        shard = bisect.bisect_right(self._first_indices, position) - 1
        return shard, position - self._first_indices[shard]

    def _batches(self, batch_size: int) -> Iterator[Inputs]:
        for start in range(0, len(self), batch_size):
            yield self._range(start, min(len(self), start + batch_size))

    def _range(self, start: int, stop: int) -> Inputs:
        """Return a copy of the inputs from `start` up to `stop`."""
        parts = []
        for shard in range(self._locate(start)[0], self._locate(stop - 1)[0] + 1):
            first = self._first_indices[shard]
            parts.append(rows(self._shards[shard].inputs, slice(max(0, start - first), stop - first)))
        return joined(parts)


def collate(samples: Sequence[Batch]) -> Batch:
    """Stack samples into a batch; fields that the data set does not have stay None.

    Use it in your own DataLoader for a data set without labels, which torch's default cannot collate.
    """
    batch: Batch = pytree.tree_map(lambda *parts: None if parts[0] is None else torch.stack(parts), *samples)
    return batch


def _first_indices(sizes: list[int]) -> list[int]:
    """Return the index of the first sample of each shard.

    >>> _first_indices([3, 3, 2])
    [0, 3, 6]
    """
    return [0, *itertools.accumulate(sizes)][:-1]


def _graph_names(spec: Specification, given: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return the name of each input in an ONNX graph, by its name in the specification."""
    names = list(spec.named)
    if given is None:
        return {name: name for name in names}
    if isinstance(given, str):
        given = {names[0]: given} if len(names) == 1 else {}
    if set(given) != set(names):
        raise UsageError(
            f"Every input of the data set ({', '.join(names)}) needs the name of one in the ONNX graph: give "
            f"{{{', '.join(f'{name!r}: ...' for name in names)}}}, or nothing if the names are the same."
        )
    return {name: given[name] for name in names}


def _require_positive(value: int, name: str = "batch_size") -> int:
    if value < 1:
        raise UsageError(f"{name} must be at least 1, got {value}.")
    return value
