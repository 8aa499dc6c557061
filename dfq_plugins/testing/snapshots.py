"""Snapshots of the state that a plugin must not change: the process and the caller's model."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATCHABLE = (nn, nn.functional, torch)
"""Modules that some frameworks monkey-patch for the whole process."""


def process_state() -> dict[str, Any]:
    """Return the process-wide state that a plugin could change, by descriptive name.

    >>> before = process_state()
    >>> _ = torch.rand(1)
    >>> differing(before, process_state())
    ["torch's random state"]
    """
    state: dict[str, Any] = {
        "Python's random state": random.getstate(),
        "NumPy's random state": repr(np.random.get_state(legacy=False)),  # noqa: NPY002  the global state itself
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "the default dtype": torch.get_default_dtype(),
        "the grad mode": torch.is_grad_enabled(),
        "the quantized engine": torch.backends.quantized.engine,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    for module in PATCHABLE:
        for name, value in vars(module).items():
            if isinstance(value, type) or callable(value):
                state[f"{module.__name__}.{name}"] = id(value)
    return state


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return all state of a model that a plugin could change, by descriptive name."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"the class of {name or 'the model'}"] = type(module)
        state[f"the mode of {name or 'the model'}"] = module.training
        state[f"the hooks of {name or 'the model'}"] = (
            len(module._forward_hooks),  # noqa: SLF001  no public API
            len(module._forward_pre_hooks),  # noqa: SLF001
            len(module._backward_hooks),  # noqa: SLF001
        )
    for name, tensor in model.state_dict().items():
        state[name] = (tensor.dtype, tensor.device, tensor.cpu().numpy().tobytes())
    for name, parameter in model.named_parameters():
        state[f"requires_grad of {name}"] = parameter.requires_grad
    return state


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ; names that exist only afterwards do not count.

    >>> differing({"mode": 1, "kept": 2}, {"mode": 3, "kept": 2, "new": 4})
    ['mode']
    """
    return [name for name, value in before.items() if name not in after or after[name] != value]


@contextmanager
def other_randomness(seed: int) -> Iterator[None]:
    """Seed every global random state with `seed` within the block, and restore it afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
