"""Loads weights files into a model. Tensors alone are read; pickled code is refused."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dfq_plugins.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

_SHOWN_KEYS = 5
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights in a checkpoint


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into `model`, in place; BatchNorm's `num_batches_tracked` may be missing.

    Args:
        model: what the weights belong to.
        path: .safetensors, or .pth or .pt read with `weights_only=True`; a checkpoint that holds the state dict under
            `state_dict`, `model_state_dict` or `model` is unwrapped.

    Raises:
        UsageError: the file has another suffix.
        ModelError: the file is missing, unreadable or holds code, or its weights do not fit.
    """
    state = _unwrap(_read_state(path), path)
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(f"The weights {path} do not fit the model: {_some(reasons)}") from error
    missing = [key for key in report.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or report.unexpected_keys:
        raise ModelError(
            f"The weights {path} do not fit the model. Missing: {_some(missing)}. "
            f"Unexpected: {_some(report.unexpected_keys)}. Give the factory that these weights were saved from."
        )


def _read_state(path: Path) -> Any:
    import torch

    if not path.is_file():
        raise ModelError(f"The weights file {path} does not exist. Give its path, relative to this folder or absolute.")
    if path.suffix not in {".safetensors", ".pth", ".pt"}:
        raise UsageError(
            f"A weights file ends in .safetensors, .pth or .pt, got {path.name!r}. Give a state dict in one of these."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415  imports torch

            return load_file(path)
        with warnings.catch_warnings():
            # Other pickle protocols are read or refused as well; the caller can do nothing about them.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"The weights file {path} holds pickled code or is damaged, and is refused: tensors alone are loaded. "
            "Save the state dict alone, best with safetensors.torch.save_file(model.state_dict(), ...)."
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"The weights file {path} cannot be read: {type(error).__name__}: {reason}") from error


def _unwrap(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """Find the state dict in a checkpoint, and drop the `module.` prefix that DataParallel leaves."""
    import torch

    wrapper = next(
        (key for key in _WRAPPERS if isinstance(state, Mapping) and isinstance(state.get(key), Mapping)), None
    )
    state = state if wrapper is None else state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"The weights file {path} holds no state dict, a mapping of names to tensors.")
    prefix = "module." if state and all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN_KEYS} more" if len(items) > _SHOWN_KEYS else ""
    return (", ".join(items[:_SHOWN_KEYS]) or "none") + more
