"""The range that fine-tuning learns for an activation quantizer, by clipping what it rounds.

The gradient is that of PACT (Choi et al. 2018, https://arxiv.org/abs/1805.06085), as in pytorch-quantization's `Clip`:
a limit receives the gradients of all values at or beyond it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dfq_shared.tensorrt.ranges import SMALLEST_AMAX

CLIP = "clip"
"""Name of the range inside their quantizer, as pytorch-quantization calls it."""


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: torch.Tensor, trained: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(inputs, ends)
        context.dtype = trained.dtype
        return inputs.clamp(*ends)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        inputs, (lowest, highest) = context.saved_tensors
        below, above = inputs <= lowest, inputs >= highest
        pulled = gradient[above].sum() - (gradient[below].sum() if lowest < 0 else 0)
        return gradient.masked_fill(below | above, 0), pulled.to(context.dtype), None


class LearnedRange(nn.Module):
    """Clips to a trainable range, which starts at the calibrated one: `[-highest, highest]`, or `[0, highest]`.

    Both ends of a signed range are one parameter, since the exported range is symmetric.

    Args:
        highest: the calibrated range.
        unsigned: whether the quantizer is unsigned.
    """

    def __init__(self, highest: torch.Tensor, *, unsigned: bool) -> None:
        super().__init__()
        self.unsigned = unsigned
        self.clip_value_max = nn.Parameter(highest.detach().clone())

    @property
    def highest(self) -> torch.Tensor:
        """The range, without gradient."""
        return self.clip_value_max.detach().clamp(min=SMALLEST_AMAX)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the clipped inputs.

        >>> clip = LearnedRange(torch.tensor(1.0), unsigned=False)
        >>> clip(torch.tensor([-3.0, 0.5, 2.0, 4.0])).sum().backward()
        >>> clip.clip_value_max.grad.item()
        1.0
        """
        ends = torch.stack([torch.zeros_like(self.highest) if self.unsigned else -self.highest, self.highest])
        clipped: torch.Tensor = _Clipped.apply(inputs, self.clip_value_max, ends)
        return clipped


def learned_range(quantizer: nn.Module) -> LearnedRange | None:
    """Return the range that is learned for a quantizer, if any."""
    found = getattr(quantizer, CLIP, None)
    return found if isinstance(found, LearnedRange) else None


def clip_to_learned(quantizer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    """Clip the inputs of a quantizer to its learned range and let it round in it: a forward pre-hook."""
    limits = learned_range(quantizer)
    if limits is None:
        return None
    # A new tensor each time: the one before may be saved for a backward pass.
    quantizer._buffers["_amax"] = limits.highest  # noqa: SLF001  (the setters of both frameworks copy in place)
    clipped: torch.Tensor = limits(inputs[0])
    return clipped
