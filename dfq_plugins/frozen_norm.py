"""Batch normalisation of a frozen network as the affine map that it is: y = scale x + shift, per channel.

With scale = weight / sqrt(var + eps) and shift = bias - mean scale. The compiler would work the root and the quotient
out again for every value of every feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenNorm(nn.Module):
    """Stands for a BatchNorm layer in eval mode; keeps its statistics where taps look for them.

    Args:
        layer: the layer, which must store running statistics.

    >>> layer = nn.BatchNorm1d(3).eval()
    >>> values = torch.tensor([[1.0, -2.0, 3.0]])
    >>> torch.equal(FrozenNorm(layer)(values), layer(values))
    True
    """

    running_mean: Tensor
    running_var: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        mean, var = (value.detach().clone() for value in (layer.running_mean, layer.running_var) if value is not None)
        self.eps = layer.eps
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        root = (var + layer.eps).rsqrt()
        scale = root if layer.weight is None else layer.weight * root
        shift = -mean * scale if layer.bias is None else layer.bias - mean * scale
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("scale", scale.detach())
        self.register_buffer("shift", shift.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalised inputs `(batch, channels, *spatial)`, in their type."""
        if not torch.compiler.is_compiling():  # the library's kernel takes one pass, these operations several
            mean, var = self.running_mean, self.running_var
            return nn.functional.batch_norm(inputs, mean, var, self.weight, self.bias, eps=self.eps)
        view = (1, -1) + (1,) * (inputs.ndim - 2)
        return torch.addcmul(self.shift.view(view), inputs.float(), self.scale.view(view)).to(inputs.dtype)


def freeze_norms(model: nn.Module) -> nn.Module:
    """Put a `FrozenNorm` in the place of every BatchNorm layer that stores statistics, in place; return the model."""
    made: dict[_BatchNorm, FrozenNorm] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, _BatchNorm) and module.running_mean is not None and name:
            made.setdefault(module, FrozenNorm(module))
            model.set_submodule(name, made[module])
    return model
