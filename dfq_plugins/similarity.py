"""How near data is to a network's training data, in the network's own eyes: pooled BatchNorm-statistics divergence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dfq_plugins.checks import require_batch_norm
from dfq_plugins.dataset import SyntheticDataset
from dfq_plugins.errors import DataError
from dfq_plugins.manifest import MANIFEST_FILE
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.statistics import layer_divergences

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dfq_plugins.types import InputSpec

BATCH_SIZE = 64
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
ARRAY_NAMES = ("inputs", "images", "x", "x_test", "data")
"""Names under which an .npz file is searched for samples, in this order; else its only array is taken."""


@dataclass(frozen=True)
class SimilarityRow:
    """One source in the ranking: mean divergence over layers in nats, and the layer that fits worst."""

    name: str
    divergence: float
    num_samples: int
    worst_layer: str


def rank(model: nn.Module, spec: InputSpec, sources: Mapping[str, Iterable[Tensor]]) -> list[SimilarityRow]:
    """Rank data sets by the divergence of their pooled statistics from those stored in the model, nearest first.

    Source: Haroush et al. 2020, the BN-statistics divergence as a measure of data similarity.

    Args:
        model: trained network with BatchNorm; stays as it is.
        spec: what an input looks like.
        sources: batches of inputs `(batch, *shape)` by the name of their data set.

    Raises:
        ModelError: the model has no trained BatchNorm statistics.
        DataError: a source holds no samples.
    """
    with preserve_global_state():
        network = frozen_copy(model)
        require_batch_norm(network)
        return sorted((_row(network, spec, *item) for item in sources.items()), key=lambda row: row.divergence)


def _row(network: nn.Module, spec: InputSpec, name: str, batches: Iterable[Tensor]) -> SimilarityRow:
    counted = _Counted(batches)
    try:
        layers = layer_divergences(network, counted, spec)
    except ValueError:
        raise DataError(f"{name} holds no samples. Give at least one.") from None
    return SimilarityRow(name, sum(layers.values()) / len(layers), counted.samples, max(layers, key=layers.__getitem__))


class _Counted:
    """Counts the samples that pass."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = batches
        self.samples = 0

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            self.samples += len(batch)
            yield batch


def load_source(path: Path, spec: InputSpec) -> Iterable[Tensor]:
    """Open a synthetic data set, a folder of images (searched recursively) or an .npz file as batches of inputs.

    Images are resized to the network's size and brought to its channels; unsigned bytes become the specification's
    value range; then the normalisation is applied. Floating-point arrays are taken as the network's own inputs.

    Raises:
        DataError: the path holds none of these, or samples that do not fit.
    """
    if (path / MANIFEST_FILE).is_file():
        return SyntheticDataset.open(path).batches(BATCH_SIZE)
    if path.suffix == ".npz" and path.is_file():
        return _array_batches(_read_array(path), spec, path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if files:
            return _image_batches(files, spec)
    raise DataError(
        f"{path} is no synthetic data set, no .npz file and no folder of images ({', '.join(sorted(IMAGE_SUFFIXES))}). "
        "Give one of these."
    )


def _read_array(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            known = [name for name in ARRAY_NAMES if name in archive.files]
            name = known[0] if known else (archive.files[0] if len(archive.files) == 1 else None)
            if name is None:
                raise DataError(
                    f"{path} holds the arrays {archive.files}: name the samples one of {', '.join(ARRAY_NAMES)}."
                )
            return np.asarray(archive[name])
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an .npz file without pickled objects: {error}.") from error


def _array_batches(array: np.ndarray, spec: InputSpec, path: Path) -> Iterator[Tensor]:
    for start in range(0, len(array), BATCH_SIZE):
        part = torch.from_numpy(array[start : start + BATCH_SIZE])
        batch = normalise(_channels_first(part, spec, path), spec) if part.dtype == torch.uint8 else part.float()
        if tuple(batch.shape[1:]) != spec.shape:
            raise DataError(f"{path} holds samples of shape {tuple(batch.shape[1:])}, the network takes {spec.shape}.")
        yield batch


def _channels_first(images: Tensor, spec: InputSpec, path: Path) -> Tensor:
    """Bring bytes `(batch, height, width[, channels])` or `(batch, channels, height, width)` to the network's shape."""
    if images.ndim == 3:  # noqa: PLR2004  grey images without a channel axis
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in {1, spec.channels}:  # noqa: PLR2004
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in {1, spec.channels} or len(spec.shape) != 3:  # noqa: PLR2004
        raise DataError(f"{path} holds bytes of shape {tuple(images.shape)}, which are no images for {spec.shape}.")
    images = images.expand(-1, spec.channels, -1, -1)
    resized = torch.nn.functional.interpolate(images.float(), size=spec.shape[1:], mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255)


def _image_batches(files: list[Path], spec: InputSpec) -> Iterator[Tensor]:
    for start in range(0, len(files), BATCH_SIZE):
        yield normalise(torch.stack([_read_image(file, spec) for file in files[start : start + BATCH_SIZE]]), spec)


def _read_image(file: Path, spec: InputSpec) -> Tensor:
    mode = {1: "L", 3: "RGB"}.get(spec.channels)
    if mode is None or len(spec.shape) != 3:  # noqa: PLR2004  (channels, height, width)
        raise DataError(f"Images have 1 or 3 channels, the network takes {spec.shape}. Give an .npz file of inputs.")
    try:
        with Image.open(file) as image:
            resized = image.convert(mode).resize((spec.shape[2], spec.shape[1]), Image.Resampling.BILINEAR)
            pixels = np.array(resized, dtype=np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}.") from error
    return torch.from_numpy(pixels.reshape(*spec.shape[1:], spec.channels)).permute(2, 0, 1)


def normalise(pixels: Tensor, spec: InputSpec) -> Tensor:
    """Turn pixels 0..255, `(batch, channels, height, width)`, into network inputs.

    >>> from dfq_plugins.types import InputSpec
    >>> normalise(torch.full((1, 1, 1, 1), 255.0), InputSpec((1, 1, 1), (0.5,), (0.5,), (0.0, 1.0))).item()
    1.0
    """
    low, high = spec.value_range or (0.0, 1.0)
    raw = low + pixels.float() / 255 * (high - low)
    mean, std = (
        raw.new_tensor(values or (fill,) * spec.channels).view(1, -1, 1, 1)
        for values, fill in ((spec.mean, 0.0), (spec.std, 1.0))
    )
    return (raw - mean) / std
