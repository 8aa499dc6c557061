"""The plain loop that data-free quantization began with: eager float32, statistics matched by squared distance.

Written from the formula of ZeroQ (Cai et al. 2020, section 3.1), with the weights frozen: Adam at 0.5, at every
BatchNorm layer the squared distances of mean and standard deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


def zeroq_step(model: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Return a function that takes one optimization step on `inputs`, `(batch, *shape)`, in place."""
    losses: list[Tensor] = []

    def matched(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(arguments[0], (0, 2, 3))
        stored_std = (layer.running_var + layer.eps).sqrt()
        losses.append((mean - layer.running_mean).square().sum() + (variance.sqrt() - stored_std).square().sum())

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(matched)
    variable = inputs.requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=0.5)

    def step() -> None:
        losses.clear()
        optimizer.zero_grad()
        model(variable)
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step
