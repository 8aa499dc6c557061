"""Moves of values that leave quantized tensors on their grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.framework import QuantTensor

if TYPE_CHECKING:
    from collections.abc import Callable


class OnGrid(nn.Identity):
    """Applies a function that only moves values or adds zeros, so that quantized values stay on their grid.

    A subclass of Identity, because Brevitas looks through identities for the quantizer that feeds an addition.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, inputs: Any) -> Any:
        """Apply the function to a tensor, or to the values of a quantized tensor."""
        if isinstance(inputs, QuantTensor):
            return inputs.set(value=self.function(inputs.value, *self.args, **self.kwargs))
        return self.function(inputs, *self.args, **self.kwargs)

    def extra_repr(self) -> str:
        """Name the function."""
        return getattr(self.function, "__name__", str(self.function))
