"""Guards that leave the caller's model and the process as they came."""

from __future__ import annotations

import copy
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode whose parameters take no gradients.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        message = (
            f"The model {type(model).__name__} cannot be copied ({error}). Work happens on a copy, so that yours stays "
            "as it is: remove what cannot be copied (open files, locks, lambdas with state), or build a fresh model."
        )
        raise ModelError(message) from error
    return copied.eval().requires_grad_(requires_grad=False)


@contextmanager
def preserve_global_state() -> Iterator[None]:
    """Restore random states (Python, NumPy, torch), default dtype, grad mode and thread count, also after an error."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  the global state itself
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
