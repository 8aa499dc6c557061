"""The weights and scales that a block's layers hold, to keep and to restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dfq_plugins.reconstruction.blocks import Block


def capture(block: Block) -> dict[str, Tensor]:
    """Return copies of the weights and scales by name."""
    found: dict[str, Tensor] = {}
    for layer in block.layers:
        module: Any = layer.module
        if layer.weight is not None:
            found[f"{layer.name}.weight"] = module.weight.detach().cpu().clone()
        for handle in (layer.weight, *layer.activations):
            if handle is not None:
                found[f"{handle.name}.scale"] = handle.scale().cpu()
    return found


@torch.no_grad()
def restore(block: Block, state: Mapping[str, Tensor]) -> None:
    """Restore captured values in place.

    Raises:
        ValueError: a value is missing or has another shape; nothing is changed then.
    """
    for name, value in capture(block).items():
        if name not in state or state[name].shape != value.shape:
            raise ValueError(f"{name!r} does not match the network")
    for layer in block.layers:
        module: Any = layer.module
        if layer.weight is not None:
            module.weight.copy_(state[f"{layer.name}.weight"])
        for handle in (layer.weight, *layer.activations):
            if handle is not None and not handle.fixed:
                handle.set_scale(state[f"{handle.name}.scale"].to(handle.scale()))
