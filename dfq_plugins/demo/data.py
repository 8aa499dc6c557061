"""scikit-learn's handwritten digits, with a fixed split into a training and a held-out part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from dfq_plugins.demo.network import DIGITS_SPEC
from dfq_plugins.errors import PluginError

HELD_OUT_EVERY = 3
"""Every third image of each class, in scikit-learn's order, is held out."""

BRIGHTEST = 16.0
"""Largest gray value in scikit-learn's digits."""


class Digits(NamedTuple):
    """Normalized digits `(images, 1, 8, 8)` in float32 and their labels `(images,)`."""

    inputs: torch.Tensor
    labels: torch.Tensor


def held_out_mask(labels: np.ndarray) -> np.ndarray:
    """Return True for every third image of each class, so that both parts have the same class distribution.

    >>> held_out_mask(np.array([7, 7, 7, 1, 7, 1, 1])).astype(int)
    array([0, 0, 1, 0, 0, 0, 1])
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
    return mask


def load_digits() -> tuple[Digits, Digits]:
    """Return the training part (1,201 images) and the held-out part (596 images).

    Raises:
        PluginError: scikit-learn, which ships the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load  # noqa: PLC0415  optional dependency, heavy
    except ImportError as error:
        raise PluginError(
            "The demo measures accuracy on scikit-learn's handwritten digits, but scikit-learn is not installed. "
            'Install it with: pip install "dfq-plugins[demo]"'
        ) from error
    data = load()
    held_out = held_out_mask(data.target)
    mean, std = (torch.tensor(values) for values in (DIGITS_SPEC.mean, DIGITS_SPEC.std))
    inputs = (torch.from_numpy(data.images / BRIGHTEST).float()[:, None] - mean) / std
    labels = torch.from_numpy(data.target).long()
    return Digits(inputs[~held_out], labels[~held_out]), Digits(inputs[held_out], labels[held_out])
