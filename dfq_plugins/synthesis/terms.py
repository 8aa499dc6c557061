"""Loss terms on synthetic inputs and the teacher's logits: pure functions, each a scalar to minimize."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  the usual name in torch code
from torch import Tensor


def class_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative mean logit of the target class. Source: Haroush et al. 2020, Inception scheme.

    Args:
        logits: teacher logits `(batch, classes)`.
        labels: target classes `(batch,)`, int64.

    >>> class_logit(torch.tensor([[1.0, 5.0]]), torch.tensor([1])).item()
    -5.0
    """
    return -logits.gather(1, labels[:, None]).mean()


def class_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the target class, in nats. Unlike the logit, it stops pulling once the teacher is confident.

    >>> round(class_cross_entropy(torch.zeros(1, 4), torch.tensor([2])).item(), 4)
    1.3863
    """
    return F.cross_entropy(logits, labels)


def total_variation(inputs: Tensor) -> Tensor:
    """Mean squared difference of neighbors along all spatial axes of `(batch, channels, *spatial)`.

    >>> total_variation(torch.tensor([[[0.0, 2.0]]])).item()
    4.0
    """
    terms = [inputs.diff(dim=axis).square().mean() for axis in range(2, inputs.ndim) if inputs.shape[axis] > 1]
    return torch.stack(terms).sum() if terms else inputs.new_zeros(())


def blur_difference(inputs: Tensor) -> Tensor:
    """Mean squared difference from the Gaussian-blurred input: 5 taps, sigma 1, reflected edges, each spatial axis.

    Axes shorter than 3 are not blurred. A constant input has no cost:

    >>> blur_difference(torch.ones(1, 1, 8, 8)).item() < 1e-12
    True
    """
    blurred = inputs
    for axis in range(2, inputs.ndim):
        if inputs.shape[axis] > 2:  # noqa: PLR2004  reflection by two needs three values
            blurred = _blur_axis(blurred, axis)
    return F.mse_loss(inputs, blurred)


def _blur_axis(inputs: Tensor, axis: int) -> Tensor:
    kernel = torch.exp(-0.5 * torch.arange(-2.0, 3.0, device=inputs.device, dtype=inputs.dtype).square())
    moved = inputs.movedim(axis, -1)
    padded = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (2, 2), mode="reflect")
    return F.conv1d(padded, (kernel / kernel.sum()).view(1, 1, 5)).reshape(moved.shape).movedim(-1, axis)


def squared_norm(inputs: Tensor) -> Tensor:
    """Mean square of the inputs (L2 prior).

    >>> squared_norm(torch.tensor([3.0, 4.0])).item()
    12.5
    """
    return inputs.square().mean()
