"""Whether a layer computes what its class in torch computes, so that it may be replaced by something equivalent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def computes_as(layer: nn.Module, *classes: type[nn.Module]) -> bool:
    """Return whether a layer's forward pass is exactly that of one of the classes.

    Subclasses may add an activation, a second input or a convolution; hooks and a forward pass set on the object may do
    the same. Parametrized layers count: only their weights are computed.

    >>> from torch import nn
    >>> class Activated(nn.BatchNorm2d):
    ...     def forward(self, inputs):
    ...         return super().forward(inputs).relu()
    >>> computes_as(nn.BatchNorm2d(1), nn.BatchNorm2d), computes_as(Activated(1), nn.BatchNorm2d)
    (True, False)
    """
    if isinstance(layer, torch.jit.ScriptModule):
        return False
    changed = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks  # noqa: SLF001  not public
    return not changed and any(type(layer).forward is known.forward for known in classes)
