"""Computes adaptive average pooling with constant matrices if torch.onnx has no operator, e.g. from 13 to 6 values."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dfq_plugins.network.tracing.pooling import averaging_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SPATIAL_AXES: dict[Any, int] = {
    functional.adaptive_avg_pool1d: 1,
    torch.adaptive_avg_pool1d: 1,
    functional.adaptive_avg_pool2d: 2,
    functional.adaptive_avg_pool3d: 3,
}
"""Number of pooled axes of each function."""


class StaticAdaptivePooling(TorchFunctionMode):
    """Inside this context, adaptive average pooling to a size that does not divide the input size is a matrix product.

    This holds for modules and functions; the input sizes are those of the traced example.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in SPATIAL_AXES:
            return self._pool(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _pool(
        self,
        func: Callable[..., Any],
        input: torch.Tensor,  # noqa: A002  (torch's name)
        output_size: int | Sequence[int | None],
    ) -> Any:
        axes = SPATIAL_AXES[func]
        sizes = [_constant_size(input, axis - axes) for axis in range(axes)]
        asked = [output_size] * axes if isinstance(output_size, int) else list(output_size)
        outputs = [size if output is None else int(output) for size, output in zip(sizes, asked, strict=True)]
        if all(size % output == 0 for size, output in zip(sizes, outputs, strict=True)):
            return func(input, output_size)
        return pool_by_matrices(input, outputs)


def pool_by_matrices(inputs: torch.Tensor, output_sizes: Sequence[int]) -> torch.Tensor:
    """Return the result of adaptive average pooling, computed with one matrix product per axis.

    Args:
        inputs: `(..., *sizes)`.
        output_sizes: the pooled sizes of the last axes.

    >>> inputs = torch.arange(10.0).view(1, 1, 2, 5)
    >>> torch.allclose(pool_by_matrices(inputs, (2, 3)), functional.adaptive_avg_pool2d(inputs, (2, 3)))
    True
    """
    for axis, output_size in enumerate(reversed(output_sizes), start=1):
        size = _constant_size(inputs, -axis)
        if size != output_size:
            matrix = averaging_matrix(size, output_size).to(inputs)
            inputs = inputs @ matrix if axis == 1 else (inputs.transpose(-axis, -1) @ matrix).transpose(-axis, -1)
    return inputs


def _constant_size(inputs: torch.Tensor, axis: int) -> int:
    """Return the size of an axis as a constant, in the traced graph too: it is not the batch axis."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python integer")
        return int(inputs.shape[axis])
