"""Quantization-aware training in FX graph mode: fake quantizers whose ranges are calibrated before training starts.

torch.ao's usual recipe starts with empty ranges and finds them with moving averages during training. Here the observers
see the data first, as in plain calibration, so the first training step already has good ranges.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.ao.quantization import FakeQuantizeBase, FixedQParamsFakeQuantize
from torch.nn.modules.dropout import _DropoutNd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from torch.fx import GraphModule


def in_training(model: nn.Module) -> nn.Module:
    """Put torch's own layers in training mode, in place, as torch.ao requires, and all other modules in eval mode.

    So the traced graph is the one that runs after training: without auxiliary outputs and without random depth.
    """
    model.eval()
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn.") and not isinstance(module, _DropoutNd):
            module.training = True
    return model


def activation_quantizers(prepared: GraphModule) -> list[Any]:
    """Return the fake quantizers called by the graph itself, each once; those of weights are inside the layers."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    called = [modules[str(node.target)] for node in prepared.graph.nodes if node.op == "call_module"]
    return list({id(module): module for module in called if isinstance(module, FakeQuantizeBase)}.values())


@contextmanager
def collecting_ranges(prepared: GraphModule) -> Iterator[None]:
    """Within the block, run the network in float and let the activation observers see the values."""
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
    """Copy the ranges from the observers, enable quantization, and make all parameters trainable.

    Weight ranges follow the weights.

    Args:
        prepared: a network whose observers have seen data; changed in place.
        observe: whether the activation observers keep observing.
    """
    _switch(prepared, quantize=True, observe=True)
    for quantizer in activation_quantizers(prepared):
        if not isinstance(quantizer, FixedQParamsFakeQuantize):
            _take_range(quantizer)
    if not observe:
        freeze_ranges(prepared)
    prepared.requires_grad_(requires_grad=True)


def freeze_ranges(prepared: GraphModule) -> None:
    """Stop the activation observers; those of weights keep running."""
    for quantizer in activation_quantizers(prepared):
        quantizer.disable_observer()


def _observe(quantizer: Any, inputs: tuple[Any, ...]) -> None:
    # Call only the observer: the fake quantizer would repeat the range search on its histogram after every batch.
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
