"""Quantization-aware training in FX graph mode: fake quantizers whose ranges are calibrated before the training begins.

torch.ao's own recipe starts with ranges of nothing and lets moving averages find them while it trains. Here the
observers see the data first, as in calibration alone, so that the first training step already has good ranges.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.ao.quantization import FakeQuantizeBase, FixedQParamsFakeQuantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from torch.fx import GraphModule


def activation_quantizers(prepared: GraphModule) -> list[Any]:
    """Return the fake quantizers that stand in the graph itself, each once; those of weights are inside of layers."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    called = [modules[str(node.target)] for node in prepared.graph.nodes if node.op == "call_module"]
    return list({id(module): module for module in called if isinstance(module, FakeQuantizeBase)}.values())


@contextmanager
def collecting_ranges(prepared: GraphModule) -> Iterator[None]:
    """Let the network compute in float meanwhile, and the observers of activations see what passes."""
    _switch(prepared, quantize=False, observe=False)
    handles = [
        quantizer.register_forward_pre_hook(_observe)
        for quantizer in activation_quantizers(prepared)
        if not isinstance(quantizer, FixedQParamsFakeQuantize)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def start_training(prepared: GraphModule, *, observe: bool) -> None:
    """Take the ranges over from the observers, quantize from now on, and let all parameters take gradients.

    The ranges of weights follow the weights.

    Args:
        prepared: a network whose observers saw data; changed in place.
        observe: whether the observers of activations go on observing.
    """
    _switch(prepared, quantize=True, observe=True)
    for quantizer in activation_quantizers(prepared):
        if not isinstance(quantizer, FixedQParamsFakeQuantize):
            _take_range(quantizer)
    if not observe:
        freeze_ranges(prepared)
    prepared.requires_grad_(requires_grad=True)


def freeze_ranges(prepared: GraphModule) -> None:
    """Stop the observers of activations; those of weights go on."""
    for quantizer in activation_quantizers(prepared):
        quantizer.disable_observer()


def _observe(quantizer: Any, inputs: tuple[Any, ...]) -> None:
    # The observer alone: the fake quantizer would search the best range of its histogram anew after every batch.
    quantizer.activation_post_process(inputs[0].detach())


@torch.no_grad()
def _take_range(quantizer: Any) -> None:
    scale, zero_point = quantizer.calculate_qparams()
    quantizer.scale.resize_(scale.shape).copy_(scale)
    quantizer.zero_point.resize_(zero_point.shape).copy_(zero_point)


def _switch(prepared: nn.Module, *, quantize: bool, observe: bool) -> None:
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_fake_quant(quantize)
            module.enable_observer(observe)
