"""Quantizes each weight once within a block: Brevitas does it anew in every forward pass."""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.framework import WeightQuantProxyFromInjectorBase

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@contextmanager
def weights_quantized_once(model: nn.Module) -> Iterator[None]:
    """Keep what each weight's quantizer answered first within the block, in which no weight and no scale may change.

    For passes without gradients. In a network with large linear layers and few samples, quantizing the weights is
    nearly all that a pass costs.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, WeightQuantProxyFromInjectorBase) and module.tensor_quant is not None:
                stack.enter_context(_remembering(module))
        yield


@contextmanager
def _remembering(proxy: Any) -> Iterator[None]:
    quantizer = proxy.tensor_quant
    proxy.tensor_quant = _Remembering(quantizer)
    try:
        yield
    finally:
        proxy.tensor_quant = quantizer


class _Remembering(nn.Module):
    """A quantizer that is asked once for each tensor: layers may share it."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.answers: dict[tuple[int, torch.Size], tuple[torch.Tensor, Any]] = {}

    def forward(self, weight: torch.Tensor) -> Any:
        key = weight.data_ptr(), weight.shape
        if key not in self.answers:
            self.answers[key] = weight, self.quantizer(weight)  # kept alive, so that nothing else gets its address
        return self.answers[key][1]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Remembering:
        return _Remembering(copy.deepcopy(self.quantizer, memo))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("quantizer"), name)
