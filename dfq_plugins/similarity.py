"""How near data is to a network's training data, in the network's own eyes: pooled BatchNorm-statistics divergence."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image

from dfq_plugins.augmentation import pad_and_crop
from dfq_plugins.checks import check_finite, require_batch_norm
from dfq_plugins.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.manifest import MANIFEST_FILE
from dfq_plugins.model_state import device_of, frozen_copy, preserve_global_state
from dfq_plugins.statistics import StatisticsPool, divergence_of, require_reached_layers, stored_statistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from dfq_plugins.types import InputSpec

BATCH_SIZE = 64
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
ARRAY_NAMES = ("inputs", "images", "x", "x_test", "data")
"""Names under which an .npz file is searched for samples, in this order; else its only array is taken."""


AugmentationName: TypeAlias = Literal["auto", "none", "pad-and-crop"]
BORDER_SHARE = 8
"""The border of pad-and-crop is this part of the image's side: 4 pixels at 32, as in He et al. 2016, section 4.2."""


@dataclass(frozen=True)
class SimilarityRow:
    """One source in the ranking.

    Args:
        name: the source.
        divergence: mean over layers, in nats.
        num_samples: how many samples were pooled.
        worst_layer: the layer that fits worst.
        augmentation: how the samples were presented: "none", or "pad-and-crop".
    """

    name: str
    divergence: float
    num_samples: int
    worst_layer: str
    augmentation: str = "none"


def rank(
    model: nn.Module,
    spec: InputSpec,
    sources: Mapping[str, Iterable[Tensor]],
    *,
    augmentation: AugmentationName = "auto",
) -> list[SimilarityRow]:
    """Rank data sets by the divergence of their pooled statistics from those stored in the model, nearest first.

    Source: Haroush et al. 2020, the BN-statistics divergence as a measure of data similarity.

    A network's stored statistics are those of its training data *as training augmented them*. Images from a training
    set that are shown plainly may therefore look farther away than strangers: zero borders, for one, raise the
    variances of the first layers. How a network was trained is not known, so each source is shown plainly and in
    training's usual way, and the presentation that fits best counts.

    Args:
        model: trained network with BatchNorm; stays as it is.
        spec: what an input looks like.
        sources: batches of inputs `(batch, *shape)` by the name of their data set.
        augmentation: "none" shows all samples plainly, "pad-and-crop" mirrors and shifts them over a border of the
            lowest value (an eighth of the side), "auto" takes for each source what fits better; inputs that are no
            images of a known value range are always shown plainly under "auto".

    Raises:
        ModelError: the model has no trained BatchNorm statistics, or holds NaN.
        UsageError: pad-and-crop is asked for inputs that are no images of a known value range.
        DataError: a source holds no samples, or values that are not finite.
    """
    presentations = _presentations(spec, augmentation)
    with preserve_global_state():
        network = frozen_copy(model)
        check_finite(network)
        require_batch_norm(network)
        names = require_reached_layers(network, spec)
        measured = (_row(network, spec, names, presentations, *item) for item in sources.items())
        return sorted(measured, key=lambda row: row.divergence)


def _presentations(spec: InputSpec, augmentation: AugmentationName) -> tuple[str, ...]:
    possible = len(spec.shape) == 3 and spec.bounds is not None and min(spec.shape[1:]) >= BORDER_SHARE  # noqa: PLR2004
    if augmentation == "auto":
        return ("none", "pad-and-crop") if possible else ("none",)
    if augmentation == "pad-and-crop" and not possible:
        raise UsageError(
            f"pad-and-crop needs images of at least {BORDER_SHARE} pixels a side with a known value range, got {spec}. "
            "Give the value range, or augmentation none."
        )
    return (augmentation,)


def _row(
    network: nn.Module,
    spec: InputSpec,
    names: tuple[str, ...],
    presentations: tuple[str, ...],
    source: str,
    batches: Iterable[Tensor],
) -> SimilarityRow:
    counted = _Counted(source, batches)
    pools = {way: StatisticsPool(network, spec, names) for way in presentations}
    rng = torch.Generator().manual_seed(0)  # the same shifts for every source
    for batch in counted:
        moved = batch.to(device_of(network))
        for way, pool in pools.items():
            pool.add(_presented(moved, way, spec, rng))
    stored = stored_statistics(network, spec, names)
    divergences = {way: divergence_of(stored, pool.moments()) for way, pool in pools.items()}
    best = min(divergences, key=lambda way: sum(divergences[way].values()))
    layers = divergences[best]
    mean = sum(layers.values()) / len(layers)
    return SimilarityRow(source, mean, counted.samples, max(layers, key=layers.__getitem__), best)


def _presented(batch: Tensor, way: str, spec: InputSpec, rng: torch.Generator) -> Tensor:
    if way == "none" or spec.bounds is None:
        return batch
    return pad_and_crop(batch, min(spec.shape[1:]) // BORDER_SHARE, batch.new_tensor(spec.bounds[0]), rng)


class _Counted:
    """Counts the samples that pass, and refuses what cannot be compared."""

    def __init__(self, name: str, batches: Iterable[Tensor]) -> None:
        self.name = name
        self.batches = batches
        self.samples = 0

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            if not bool(batch.isfinite().all()):
                raise DataError(f"{self.name} holds NaN or infinity. Remove those samples.")
            self.samples += len(batch)
            yield batch
        if not self.samples:
            raise DataError(f"{self.name} holds no samples. Give at least one.")


def load_source(path: Path, spec: InputSpec) -> Iterable[Tensor]:
    """Open a synthetic data set, a folder of images (searched recursively) or an .npz file as batches of inputs.

    Images are resized to the network's size and brought to its channels; unsigned bytes become the specification's
    value range; then the normalisation is applied. Floating-point arrays are taken as the network's own inputs.

    Raises:
        DataError: the path holds none of these, or samples that do not fit.
    """
    if (path / MANIFEST_FILE).is_file():
        data = SyntheticDataset.open(path)
        _check_shape(data.spec.shape, spec, path)
        return data.batches(BATCH_SIZE)
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
    """Return the samples of an .npz file: bytes or floating point, the first axis over samples."""
    try:
        with path.open("rb") as file:  # numpy leaves a file open that it finds damaged
            loaded = np.load(file, allow_pickle=False)
            single = isinstance(loaded, np.ndarray)  # an array by itself, under an archive's name
            array = loaded if single else np.asarray(loaded[_array_name(loaded.files, path)])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz file without pickled objects: {error}.") from error
    if array.ndim == 0 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}. "
            "Give images as uint8, or the network's own inputs as floating point."
        )
    return array


def _array_name(names: list[str], path: Path) -> str:
    known = [name for name in ARRAY_NAMES if name in names]
    if known or len(names) == 1:
        return (known or names)[0]
    raise DataError(f"{path} holds the arrays {names}. Name the one of the samples {' or '.join(ARRAY_NAMES)}.")


def _array_batches(array: np.ndarray, spec: InputSpec, path: Path) -> Iterator[Tensor]:
    for start in range(0, len(array), BATCH_SIZE):
        part = torch.from_numpy(array[start : start + BATCH_SIZE])
        batch = normalise(_channels_first(part, spec, path), spec) if part.dtype == torch.uint8 else part.float()
        _check_shape(tuple(batch.shape[1:]), spec, path)
        yield batch


def _check_shape(shape: tuple[int, ...], spec: InputSpec, path: Path) -> None:
    if shape != spec.shape:
        raise DataError(
            f"{path} holds samples of shape {shape}, and the network takes {spec.shape}. "
            "Give samples as the network takes them, channels first."
        )


def _channels_first(images: Tensor, spec: InputSpec, path: Path) -> Tensor:
    """Bring bytes `(batch, height, width[, channels])` or `(batch, channels, height, width)` to the network's shape."""
    shape = tuple(images.shape)
    if images.ndim == 3:  # noqa: PLR2004  grey images without a channel axis
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in {1, spec.channels}:  # noqa: PLR2004
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in {1, spec.channels} or len(spec.shape) != 3:  # noqa: PLR2004
        raise DataError(
            f"{path} holds bytes of shape {shape}, which are no images for a network that takes {spec.shape}. "
            "Give (images, height, width), with channels first or last."
        )
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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}. Mend or remove it.") from error
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
