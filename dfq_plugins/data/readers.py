"""Reads images, arrays and data sets as batches of network inputs."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.data.manifest import MANIFEST_FILE
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.types import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from dfq_plugins.types import Inputs, InputSpec, Specification

BATCH_SIZE = 64

_STEPS_OF_16_BITS = 65535 / 255

SMALLEST_DEVIATION = 1e-6
"""Smallest standard deviation that a sample is divided by when it is standardized."""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

ARRAY_NAMES = ("inputs", "images", "x", "x_test", "data")
"""Names of the samples in an .npz file, tried in this order; if none is there, its only array is used."""


def load_source(path: Path, spec: Specification) -> Iterable[Inputs]:
    """Open a synthetic data set, a folder of images (searched recursively) or an .npz file as batches of inputs.

    Images are resized and their channels converted to match the network; unsigned bytes are scaled to the
    specification's value range and normalized. Floating-point arrays are used as network inputs without change. For a
    network with several inputs, an .npz file holds an array under the name of each.

    Raises:
        DataError: the path holds none of these, or the samples do not match the network.
    """
    if (path / MANIFEST_FILE).is_file():
        data = SyntheticDataset.open(path)
        _check_shape(data.spec.shape, spec, path)
        return data.batches(BATCH_SIZE)
    if isinstance(spec, NetworkSpec):
        return _named_batches(path, spec)
    if _is_array(path):
        return _array_batches(_read_array(path), spec, path)
    if files := sorted(_image_files(path)):
        return _image_batches(files, spec)
    raise _unknown_source(path)


def open_set(path: Path) -> SyntheticDataset | None:
    """Open the synthetic data set at a path; None if it holds something else."""
    return SyntheticDataset.open(path) if (path / MANIFEST_FILE).is_file() else None


def require_source(path: Path) -> None:
    """Check that a path holds something that `load_source` can open.

    Raises:
        DataError: it does not.
    """
    if not ((path / MANIFEST_FILE).is_file() or _is_array(path) or any(_image_files(path))):
        raise _unknown_source(path)


def _is_array(path: Path) -> bool:
    return path.suffix == ".npz" and path.is_file()


def _image_files(path: Path) -> Iterator[Path]:
    """Find the images in a folder lazily; a path that is not a folder has none."""
    return (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)


def _unknown_source(path: Path) -> DataError:
    kinds = f"a synthetic data set, an .npz file or a folder of images ({', '.join(sorted(IMAGE_SUFFIXES))})"
    return DataError(f"{path} is not {kinds}. Give one of these.")


def _named_batches(path: Path, spec: NetworkSpec) -> Iterator[Inputs]:
    """Yield batches of several inputs, each from the array of its name."""
    if not _is_array(path):
        raise DataError(
            f"{path} must hold several inputs: {', '.join(spec.order)}. Give a synthetic data set, or an .npz file "
            "with an array under each of these names."
        )
    arrays = {name: _read_array(path, name) for name in spec.order}
    if len({len(array) for array in arrays.values()}) > 1:
        counts = ", ".join(f"{name} has {len(array)}" for name, array in arrays.items())
        raise DataError(f"{path} needs the same number of samples of each input, but {counts}.")
    parts = [_array_batches(arrays[name], one, path) for name, one in spec.inputs.items()]
    return (dict(zip(spec.order, batches, strict=True)) for batches in zip(*parts, strict=True))


def _read_array(path: Path, name: str | None = None) -> np.ndarray:
    """Return the samples of an .npz file as bytes or floating point; the first axis is the sample axis.

    Args:
        path: the file.
        name: name of the array; None finds it.
    """
    try:
        with path.open("rb") as file:  # numpy leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            single = isinstance(loaded, np.ndarray) and name is None  # a bare array with an archive's suffix
            array = loaded if single else np.asarray(loaded[_array_name(loaded.files, path, name)])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz file without pickled objects: {error}.") from error
    if array.ndim == 0 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}. "
            "Provide images as uint8, or network inputs as floating point."
        )
    return array


def _array_name(names: list[str], path: Path, wanted: str | None = None) -> str:
    if wanted is not None:
        if wanted in names:
            return wanted
        raise DataError(f"{path} holds the arrays {names}, but the network has an input {wanted!r}. Add it.")
    known = [name for name in ARRAY_NAMES if name in names]
    if known or len(names) == 1:
        return (known or names)[0]
    raise DataError(f"{path} holds the arrays {names}. Name the array of samples {' or '.join(ARRAY_NAMES)}.")


def _array_batches(array: np.ndarray, spec: InputSpec, path: Path) -> Iterator[Tensor]:
    if array.dtype == np.uint8:
        _require_normalization(spec, path)
    for start in range(0, len(array), BATCH_SIZE):
        part = torch.from_numpy(array[start : start + BATCH_SIZE])
        batch = normalize(_channels_first(part, spec, path), spec) if part.dtype == torch.uint8 else part.float()
        _check_shape(tuple(batch.shape[1:]), spec, path)
        yield batch


def _check_shape(shape: Any, spec: Specification, path: Path) -> None:
    if shape != spec.shape:
        raise DataError(
            f"{path} holds samples of shape {shape}, but the network takes {spec.shape}. "
            "Provide samples in the network's shape, channels first."
        )


def _channels_first(images: Tensor, spec: InputSpec, path: Path) -> Tensor:
    """Bring bytes `(batch, height, width[, channels])` or `(batch, channels, height, width)` to the network's shape."""
    shape = tuple(images.shape)
    if images.ndim == 3:  # noqa: PLR2004  gray images without a channel axis
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in {1, spec.channels}:  # noqa: PLR2004
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in {1, spec.channels} or len(spec.shape) != 3:  # noqa: PLR2004
        raise DataError(
            f"{path} holds bytes of shape {shape}, which are not images for a network that takes {spec.shape}. "
            "Provide (images, height, width), with channels first or last."
        )
    images = images.expand(-1, spec.channels, -1, -1)
    resized = torch.nn.functional.interpolate(images.float(), size=spec.shape[1:], mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255)


def _require_normalization(spec: InputSpec, path: Path) -> None:
    """Reject images for a network of which it is not known what it does with their values.

    Raises:
        UsageError: there is no mean, no range and no normalization by sample.
    """
    if spec.mean is None and spec.value_range is None and not spec.standardized_samples:
        raise UsageError(
            f"{path} holds images, whose values must be brought to those that the network takes, but its normalization "
            "is not known. Give mean and std (--mean, --std) and value_range (--value-range; 0,1 if the network takes "
            "images without further normalization)."
        )


def _image_batches(files: list[Path], spec: InputSpec) -> Iterator[Tensor]:
    for start in range(0, len(files), BATCH_SIZE):
        yield normalize(torch.stack([_read_image(file, spec) for file in files[start : start + BATCH_SIZE]]), spec)


def _read_image(file: Path, spec: InputSpec) -> Tensor:
    mode = {1: "L", 3: "RGB"}.get(spec.channels)
    if mode is None or len(spec.shape) != 3:  # noqa: PLR2004  (channels, height, width)
        raise DataError(
            f"Images have 1 or 3 channels, but the network takes {spec.shape}. Provide an .npz file of inputs."
        )
    _require_normalization(spec, file.parent)
    try:
        with Image.open(file) as image:
            resized = _eight_bits(image, mode, file).resize((spec.shape[2], spec.shape[1]), Image.Resampling.BILINEAR)
            pixels = np.array(resized, dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}. Fix or remove it.") from error
    pixels = pixels.reshape(*spec.shape[1:], -1)  # one channel of a gray image, or all
    return torch.from_numpy(pixels).permute(2, 0, 1).expand(spec.channels, -1, -1)


def _eight_bits(image: Image.Image, mode: str, file: Path) -> Image.Image:
    """Return an image with values of 0 to 255: in `mode`, or as gray floating point if it has 16 bits.

    Raises:
        DataError: the largest possible value of a pixel is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow would clip them at 255
        return Image.fromarray(np.asarray(image).astype(np.float32) / _STEPS_OF_16_BITS)
    if image.mode in {"I", "F"}:
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(
            f"The values of an image need a known range, but {file} holds {kind}. Store them with 8 or 16 bits, or "
            "provide an .npz file of network inputs."
        )
    return image.convert(mode)


def normalize(pixels: Tensor, spec: InputSpec) -> Tensor:
    """Convert pixels 0..255, `(batch, channels, height, width)`, to network inputs.

    >>> from dfq_plugins.types import InputSpec
    >>> normalize(torch.full((1, 1, 1, 1), 255.0), InputSpec((1, 1, 1), (0.5,), (0.5,), (0.0, 1.0))).item()
    1.0
    """
    low, high = spec.value_range or (0.0, 1.0)
    raw = low + pixels.float() / 255 * (high - low)
    if spec.standardized_samples:
        deviation, mean = torch.std_mean(raw.flatten(1), 1, correction=0)
        shape = (-1, *[1] * (raw.ndim - 1))
        return (raw - mean.view(shape)) / deviation.clamp_min(SMALLEST_DEVIATION).view(shape)
    mean, std = (
        raw.new_tensor(values or (fill,) * spec.channels).view(1, -1, 1, 1)
        for values, fill in ((spec.mean, 0.0), (spec.std, 1.0))
    )
    return (raw - mean) / std
