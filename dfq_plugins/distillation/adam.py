"""The optimizer of a student: Adam with a learning rate for each tensor, by default in proportion to its size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection

    from dfq_plugins.distillation.options import DistillationOptions

SMALLEST_SIZE = 0.01
"""Root mean square that a tensor is taken to have at least, so that biases of zero can move."""


def build_optimizer(
    model: nn.Module, scales: Collection[nn.Parameter], options: DistillationOptions
) -> torch.optim.Optimizer:
    """Return Adam over all parameters that take gradients, one group each with its full rate as `base`.

    Args:
        model: the student.
        scales: which of its parameters are quantizer scales.
        options: both learning rates.

    Raises:
        ModelError: no parameter takes gradients.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError(
            f"Fine-tuning needs parameters that take gradients, and {type(model).__name__} has none. Prepare it with "
            "training=True, or call requires_grad_() on the parameters to train."
        )
    known = {id(parameter) for parameter in scales}
    rates = (options.learning_rate, options.scale_learning_rate)
    relative = options.learning_rate_unit == "relative"
    bases = [rates[id(p) in known] * (size_of(p) if relative else 1.0) for p in trainable]
    groups = [{"params": [p], "base": base, "lr": 0.0} for p, base in zip(trainable, bases, strict=True)]
    return torch.optim.Adam(groups)


def size_of(parameter: torch.Tensor) -> float:
    """Return the root mean square of a tensor, at least `SMALLEST_SIZE`.

    >>> size_of(torch.tensor([3.0, -3.0])), size_of(torch.zeros(2))
    (3.0, 0.01)
    """
    return max(float(parameter.detach().square().mean().sqrt()), SMALLEST_SIZE)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its full rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def set_training_mode(model: nn.Module, *, batch_norm_frozen: bool) -> None:
    """Put a student in training mode; dropout stays off, and BatchNorm keeps its statistics where they are frozen.

    A student learns its teacher's answers, which dropout would only blur.
    """
    model.train()
    for module in model.modules():
        frozen = batch_norm_frozen and isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  no public base
        if frozen or isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001  as above
            module.eval()
