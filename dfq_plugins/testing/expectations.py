"""Helpers of the contracts: expect an error from a call, or compute a model's outputs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch

from dfq_plugins.errors import DfqError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def refused(what: str, kind: type[DfqError] = DfqError) -> Iterator[list[DfqError]]:
    """Fail unless the block raises an error from `dfq_plugins.errors`; the error is appended to the yielded list."""
    caught: list[DfqError] = []
    rule = f"{what} must raise a {kind.__name__} from dfq_plugins.errors that says what to do instead"
    try:
        yield caught
    except kind as error:
        caught.append(error)
    except Exception as error:  # noqa: BLE001  any other error must be reported
        pytest.fail(f"{rule}, got {type(error).__name__}: {error}")
    else:
        pytest.fail(f"{rule}, but it was accepted.")


@torch.no_grad()
def outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return a model's outputs for inputs `(samples, *shape)` as float32."""
    result: torch.Tensor = model(inputs)
    return result.float()
