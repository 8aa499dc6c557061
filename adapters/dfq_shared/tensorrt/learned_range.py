"""Limits that fine-tuning learns for an activation quantizer, by clipping what it rounds.

The gradient is that of PACT (Choi et al. 2018, https://arxiv.org/abs/1805.06085), as in
pytorch-quantization's `Clip`: a limit receives the gradients of all values at or beyond it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CLIP = "clip"
"""Name of the limits inside their quantizer, as pytorch-quantization calls them."""


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(inputs, low, high)
        return inputs.clamp(low, high)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        inputs, low, high = context.saved_tensors
        below, above = inputs <= low, inputs >= high
        inside = gradient.masked_fill(below | above, 0)
        return (
            inside if context.needs_input_grad[0] else None,
            gradient[below].sum().to(low.dtype) if context.needs_input_grad[1] else None,
            gradient[above].sum().to(high.dtype) if context.needs_input_grad[2] else None,
        )


class LearnedRange(nn.Module):
    """Clips to two trainable limits, each starting at the calibrated range.

    Args:
        highest: the calibrated range.
        unsigned: whether the quantizer is unsigned; its lower limit is then zero and not trained.
    """

    def __init__(self, highest: torch.Tensor, *, unsigned: bool) -> None:
        super().__init__()
        start = highest.detach().clone()
        self.clip_value_min = nn.Parameter(start * 0 if unsigned else -start, requires_grad=not unsigned)
        self.clip_value_max = nn.Parameter(start)

    @property
    def highest(self) -> torch.Tensor:
        """The symmetric range that holds both limits, without gradient."""
        return torch.maximum(-self.clip_value_min.detach(), self.clip_value_max.detach())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the clipped inputs.

        >>> clip = LearnedRange(torch.tensor(1.0), unsigned=False)
        >>> clip(torch.tensor([-3.0, 0.5, 2.0])).sum().backward()
        >>> clip.clip_value_min.grad.item(), clip.clip_value_max.grad.item()
        (1.0, 1.0)
        """
        clipped: torch.Tensor = _Clipped.apply(inputs, self.clip_value_min, self.clip_value_max)
        return clipped


def learned_range(quantizer: nn.Module) -> LearnedRange | None:
    """Return the limits that are learned for a quantizer, if any."""
    found = getattr(quantizer, CLIP, None)
    return found if isinstance(found, LearnedRange) else None


def clip_to_learned(quantizer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    """Clip the inputs of a quantizer to its learned limits and let it round in their range: a forward pre-hook."""
    limits = learned_range(quantizer)
    if limits is None:
        return None
    # A new tensor each time: the one before may be saved for a backward pass.
    quantizer._buffers["_amax"] = limits.highest  # noqa: SLF001  (the setters of both frameworks copy in place)
    clipped: torch.Tensor = limits(inputs[0])
    return clipped
