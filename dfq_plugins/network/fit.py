"""The private copy of a network that a framework works on, made fit for frameworks in general.

Wrappers are taken off, parametrizations are baked into plain weights, and a BatchNorm without scale and shift gets ones
and zeros. What the network computes stays the same.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dfq_plugins.model_state import frozen_copy
from dfq_plugins.private_copy import unwrapped


def fitted_copy(model: nn.Module) -> nn.Module:
    """Return a private copy in eval mode and float32, unwrapped, with plain parameters and complete BatchNorms.

    Raises:
        ModelError: the network cannot be copied, or it is a TorchScript program.
    """
    private = frozen_copy(model)
    for name, child in list(private.named_modules()):
        inner = unwrapped(child)
        if name and inner is not child:
            parent, _, attribute = name.rpartition(".")
            private.get_submodule(parent).add_module(attribute, inner)
    with torch.no_grad():
        for module in private.modules():
            bake_parametrizations(module)
            if isinstance(module, _BatchNorm):
                complete_affine(module)
    return private.requires_grad_(requires_grad=False)


def bake_parametrizations(module: nn.Module) -> None:
    """Replace computed weights (weight norm, spectral norm, any parametrization) with their values, in place."""
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
        del module._modules["parametrizations"]  # noqa: SLF001  delattr asks the class that computes the values
        # torch keeps the computed properties in a class of their own, which the caller's module shares.
        module.__class__ = type(module).__mro__[1]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    for hook in list(module._forward_pre_hooks.values()):  # noqa: SLF001  both are hooks of the older generation
        if isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(module, hook.name)


def complete_affine(layer: _BatchNorm) -> None:
    """Give a BatchNorm without scale and shift ones and zeros, in place: frameworks fold both.

    >>> layer = nn.BatchNorm2d(3, affine=False)
    >>> complete_affine(layer)
    >>> layer.weight.tolist(), layer.bias.tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    if layer.weight is None and layer.running_mean is not None:
        layer.affine = True
        layer.weight = nn.Parameter(torch.ones_like(layer.running_mean), requires_grad=False)
        layer.bias = nn.Parameter(torch.zeros_like(layer.running_mean), requires_grad=False)
