"""Calibration data for networks that take a list of images: the batches of detection data sets, or any other data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dfq_plugins.data.calibration_data import as_calibration_data
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.types import GivenSpec, Inputs

IMAGES_AT_ONCE = 4
"""Images in a list, where the data does not say: second stages multiply them by hundreds of boxes."""

_IMAGE_AXES = 3


def as_image_lists(data: Any, *, single: bool = False) -> list[list[Tensor]] | None:
    """Return the lists of images in data of lists; None if it does not consist of lists.

    Args:
        data: an iterable of lists of images `(channels, height, width)`, or of (images, targets) pairs as detection
            loaders yield them.
        single: whether a tensor of three axes is one image, with or without a target, and not a batch of sequences.

    Raises:
        DataError: there is no image, or images are not floating point.

    >>> import torch
    >>> image = torch.zeros(3, 8, 8)
    >>> [len(images) for images in as_image_lists([([image, image], [{}, {}]), [image]])]
    [2, 1]
    """
    if isinstance(data, (SyntheticDataset, Tensor, Mapping)) or not isinstance(data, Iterable):
        return None
    lists = [_images_in(item, single=single) for item in data]
    found = [images for images in lists if images is not None]
    if len(found) < len(lists) or not found:
        return None
    for image in (image for images in found for image in images):
        if not image.is_floating_point():
            raise DataError(f"Images must be floating-point, got {image.dtype}. Divide integers by 255 first.")
    return found


def _images_in(item: object, *, single: bool) -> list[Tensor] | None:
    """Return the images in one item of the data; None if it is a batch."""
    if single and _is_image(item):
        return [item]  # type: ignore[list-item]
    if not isinstance(item, (list, tuple)) or not item:
        return None
    if isinstance(item[0], (list, tuple)) and item[0] and all(map(_is_image, item[0])):
        return list(item[0])
    if isinstance(item, list) and all(map(_is_image, item)):
        return list(item)
    return [item[0]] if single and _is_image(item[0]) else None


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == _IMAGE_AXES


def in_lists(batches: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the samples of batches in lists of a few."""
    return [list(part) for batch in batches for part in torch.split(batch, IMAGES_AT_ONCE)]


def in_batches(data: Any, spec: GivenSpec | None) -> Sequence[Inputs]:
    """Return data in batches; see `as_calibration_data`."""
    return list(as_calibration_data(data, spec))
