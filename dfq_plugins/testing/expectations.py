"""What the contracts ask of a call: that it is refused, or what it returns."""

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
    """Fail unless the block raises an error of `dfq_plugins.errors`; the list that it yields then holds the error."""
    caught: list[DfqError] = []
    asked = f"{what} must raise a {kind.__name__} of dfq_plugins.errors that says what to do instead"
    try:
        yield caught
    except kind as error:
        caught.append(error)
    except Exception as error:  # noqa: BLE001  any other error is what this is about
        pytest.fail(f"{asked}, got {type(error).__name__}: {error}")
    else:
        pytest.fail(f"{asked}, but was accepted.")


@torch.no_grad()
def outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return a model's output for inputs `(samples, *shape)` as float32."""
    result: torch.Tensor = model(inputs)
    return result.float()
