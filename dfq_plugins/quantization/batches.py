"""Calibration batches for all adapters: each one checked and on the model's device, and at least one of them."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import DataError
from dfq_plugins.inputs import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfq_plugins.types import Inputs, Specification


def checked_batches(
    batches: Iterable[Inputs], spec: Specification, device: torch.device | str = "cpu"
) -> Iterator[Inputs]:
    """Yield each batch `(samples, *shape)` as float32 on `device`; empty ones are skipped.

    Args:
        batches: the user's calibration batches; read once.
        spec: the network's input.
        device: device of the network.

    Raises:
        DataError: there are no samples, or a batch has the wrong shape or contains NaN or infinity.
    """
    seen = 0
    for batch in batches:
        spec.check_batch(batch)
        if samples := count(batch):
            seen += samples
            # In the order of the specification, which files and graphs rely on.
            yield spec.map(lambda _, tensor: tensor.to(device, torch.float32), batch)
    if seen == 0:
        shapes = spec.map(lambda one: f"({', '.join(map(str, ('samples', *one.shape)))})")
        raise DataError(
            f"Calibration needs at least one batch, got none. Give batches of shape {shapes}; note that an "
            "iterator that was already read yields none."
        )


def raised_by_batches(error: BaseException) -> bool:
    """Return whether an error comes from the batches themselves, that is, from an iterator of the caller's."""
    return any(frame.f_code is checked_batches.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))
