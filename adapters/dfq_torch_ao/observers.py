"""Finds the observer in a prepared module: the module itself, or inside a fake quantizer if it is to be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.ao.quantization import FakeQuantizeBase, FixedQParamsFakeQuantize, FixedQParamsObserver, ObserverBase

if TYPE_CHECKING:
    from torch import nn


def observer_of(module: nn.Module | None) -> Any | None:
    """Return the observer that a module is or contains, or None if there is none."""
    if isinstance(module, FakeQuantizeBase):
        return module.activation_post_process
    return module if isinstance(module, ObserverBase) else None


def fixed_like(module: nn.Module, scale: float, zero_point: int) -> nn.Module:
    """Return an observer or a fake quantizer with the number format of `module` and a fixed scale."""
    found: Any = observer_of(module)
    number_format = {name: getattr(found, name) for name in ("dtype", "qscheme", "quant_min", "quant_max")}
    if not isinstance(module, FakeQuantizeBase):
        observer: nn.Module = FixedQParamsObserver(scale, zero_point, **number_format)
        return observer
    fixed = FixedQParamsObserver.with_args(scale=scale, zero_point=zero_point, **number_format)
    fake_quantizer: nn.Module = FixedQParamsFakeQuantize(observer=fixed)
    return fake_quantizer
