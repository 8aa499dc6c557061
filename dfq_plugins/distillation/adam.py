"""The student's optimizer: Adam, by default with steps proportional to the size of the values they change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.errors import ModelError
from dfq_plugins.statistics.batch_norm import stores_statistics

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

    from dfq_plugins.distillation.options import TrainingOptions

SMALLEST_SIZE = 0.01
"""Lower bound on a tensor's root mean square, so that biases of zero can move."""

SMALLEST_SHARE = 0.01
"""Lower bound on a channel's size, as a share of its tensor's size."""

_MATRIX = 2  # with at least this many dimensions, the first one is the output channels


class RelativeAdam(torch.optim.Adam):
    """Adam with relative steps: a share of a weight's output channel size, or of the scale itself.

    Where BatchNorm is folded into a layer, its channels differ by orders of magnitude, and so do their scales, so no
    single step size fits a whole tensor. Scales are updated multiplicatively and therefore never change sign.

    Args:
        groups: parameter groups, as for `torch.optim.Adam`.
        weights: parameters that move by a share of their initial size.
        scales: parameters that are updated multiplicatively.
    """

    def __init__(
        self, groups: list[dict[str, Any]], weights: Collection[nn.Parameter], scales: Collection[nn.Parameter]
    ) -> None:
        super().__init__(groups)
        self._sizes = {weight: weight_size(weight) for weight in weights}
        self._scales = tuple(scales)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take an Adam step in which each value moves in proportion to its size."""
        weights, scales = ([parameter.clone() for parameter in part] for part in (self._sizes, self._scales))
        loss = super().step(closure)
        for (parameter, size), old in zip(self._sizes.items(), weights, strict=True):
            parameter.copy_(torch.lerp(old, parameter, size))
        for parameter, old in zip(self._scales, scales, strict=True):
            parameter.copy_(old * torch.exp((parameter - old) * old.sign()))
        return loss


def build_optimizer(
    model: nn.Module, scales: Collection[nn.Parameter], options: TrainingOptions
) -> torch.optim.Optimizer:
    """Return Adam over all trainable parameters, with each group's full learning rate under the key `base`.

    Args:
        model: the student.
        scales: the parameters that are quantizer scales.
        options: both learning rates.

    Raises:
        ModelError: no parameter requires gradients.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError(
            f"Fine-tuning needs trainable parameters, and {type(model).__name__} has none. Prepare it with "
            "training=True, or call requires_grad_() on the parameters to train."
        )
    known = {id(parameter) for parameter in scales}
    weights = [parameter for parameter in trainable if id(parameter) not in known]
    learned = [parameter for parameter in trainable if id(parameter) in known]
    parts = ((weights, options.weight_rate), (learned, options.scale_learning_rate))
    groups: list[dict[str, Any]] = [{"params": part, "base": rate, "lr": 0.0} for part, rate in parts if part]
    if options.learning_rate_unit == "absolute":
        return torch.optim.Adam(groups)
    return RelativeAdam(groups, weights, learned)


@torch.no_grad()
def weight_size(parameter: Tensor) -> Tensor:
    """Return the root mean square of each output channel of a weight, or of the whole tensor for a vector.

    >>> weight_size(torch.tensor([[3.0, -3.0], [1.0, 1.0]])).flatten().tolist(), weight_size(torch.zeros(2)).item()
    ([3.0, 1.0], 0.009999999776482582)
    """
    whole = parameter.square().mean().sqrt().clamp(min=SMALLEST_SIZE)
    if parameter.dim() < _MATRIX:
        return whole
    return parameter.square().mean(tuple(range(1, parameter.dim())), keepdim=True).sqrt().clamp(whole * SMALLEST_SHARE)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its full rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def set_training_mode(model: nn.Module, *, batch_norm_frozen: bool) -> None:
    """Put a student in training mode with dropout off, and with fixed BatchNorm statistics if `batch_norm_frozen`.

    The student learns its teacher's outputs, and dropout would only add noise.
    """
    model.train()
    for module in model.modules():
        frozen = batch_norm_frozen and isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  no public base
        if frozen or isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001  as above
            module.eval()
        elif batch_norm_frozen and stores_statistics(module):
            module.training = False  # not of its children: it may be a whole block
