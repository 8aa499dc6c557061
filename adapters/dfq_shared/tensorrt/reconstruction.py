"""The quantizers of both of NVIDIA's frameworks, as the host's reconstruction reads, replaces and sets them."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import UsageError
from dfq_plugins.types import QuantizedLayer, QuantizedView, QuantizerHandle
from dfq_shared.tensorrt.learned_range import learned_range
from dfq_shared.tensorrt.quantizers import is_active, is_integer, quantized_modules
from dfq_shared.tensorrt.ranges import SMALLEST_AMAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from dfq_shared.tensorrt.options import RangeOptions


class TensorQuantizerHandle(QuantizerHandle):
    """One `TensorQuantizer` with a range: `amax = scale * highest`."""

    def __init__(self, name: str, quantizer: Any, *, fixed: bool) -> None:
        self._quantizer = quantizer
        highest = 2 ** (quantizer.num_bits - 1 + int(quantizer.unsigned)) - 1
        signed_lowest = -highest if quantizer.narrow_range else -highest - 1
        super().__init__(name, lowest=0 if quantizer.unsigned else signed_lowest, highest=highest, fixed=fixed)

    @property
    def key(self) -> int:
        """The identity of the quantizer."""
        return id(self._quantizer)

    def scale(self) -> Tensor:
        """Return the step between two levels."""
        amax: Tensor = self._quantizer.amax
        return (amax / self.highest).detach().clone()

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Set the range, and the one that training learns, if there is one."""
        amax = (scale * self.highest).clamp(min=SMALLEST_AMAX)
        self._quantizer.amax.copy_(amax)
        learned = learned_range(self._quantizer)
        if learned is not None:
            learned.clip_value_max.copy_(amax)

    @contextmanager
    def replaced(self, quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Within the block, call the function in place of the quantizer's forward."""
        vars(self._quantizer)["forward"] = lambda inputs: quantize(inputs)[0]
        try:
            yield
        finally:
            del vars(self._quantizer)["forward"]


def quantized_view(prepared: nn.Module, options: RangeOptions, *, training: bool) -> QuantizedView:
    """Return the quantizers of a prepared network; the ranges of the network's known inputs are fixed.

    Raises:
        UsageError: the weight ranges follow the weights in training.
    """
    if training and options.training_weights == "follow":
        raise UsageError(
            "reconstruct stores learned weight ranges, but with training_weights=follow they are computed from the "
            "weights at every step. Use training_weights=fixed."
        )
    layers = tuple(_layer(name, module) for name, module in quantized_modules(prepared))
    return QuantizedView(layers, partial(_floating, prepared))


def _layer(name: str, module: Any) -> QuantizedLayer:
    weight = getattr(module, "weight_quantizer", None)
    known = module.input_quantizer._calibrator is None  # noqa: SLF001  (how the framework marks a fixed range)
    return QuantizedLayer(
        name,
        module,
        TensorQuantizerHandle(f"{name}.weight", weight, fixed=False) if _has_range(weight) else None,
        (TensorQuantizerHandle(f"{name}.input", module.input_quantizer, fixed=known),)
        if _has_range(module.input_quantizer)
        else (),
    )


def _has_range(quantizer: Any) -> bool:
    return quantizer is not None and is_active(quantizer) and is_integer(quantizer) and quantizer.amax is not None


@contextmanager
def _floating(prepared: nn.Module) -> Iterator[None]:
    """Within the block, pass all values through the quantizers unchanged."""
    with ExitStack() as stack:
        for _, module in quantized_modules(prepared):
            for quantizer in (module.input_quantizer, getattr(module, "weight_quantizer", None)):
                if quantizer is not None:
                    former = quantizer._disabled  # noqa: SLF001  (no public access)
                    quantizer.disable()
                    stack.callback(setattr, quantizer, "_disabled", former)
        yield
