"""Quantization-aware training: fake quantizers whose ranges are calibrated before training starts.

torchao's usual recipe starts with empty ranges and finds them with moving averages during training. Here the ranges
are those that calibration would find, so the first training step already has good ones.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase, FixedQParamsFakeQuantize
from torchao.quantization.pt2e.observer import HistogramObserver

from dfq_torchao.observers import FAMILY, activation_observers, finds_one_range, weight_observers
from dfq_torchao.ranges import match_histogram_levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from torch.fx import GraphModule


@contextmanager
def collecting_ranges(prepared: GraphModule) -> Iterator[None]:
    """Within the block, run the network in float; afterwards the activation quantizers have the ranges of the values.

    Histograms find the ranges, as in plain calibration. The quantizers' moving averages continue from there.
    """
    quantizers = [module for module in activation_observers(prepared) if _is_calibrated(module)]
    histograms = [_histogram_like(module) for module in quantizers]
    _switch(prepared, quantize=False)
    for quantizer in quantizers:
        quantizer.disable_observer()
    for quantizer in weight_observers(prepared):
        _follow(quantizer)
    handles = [
        quantizer.register_forward_pre_hook(functools.partial(_observe, histogram))
        for quantizer, histogram in zip(quantizers, histograms, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for quantizer, histogram in zip(quantizers, histograms, strict=True):
        _take_range(quantizer, histogram)


def start_training(prepared: GraphModule, *, observe: bool) -> None:
    """Enable quantization, and make all parameters trainable. Weight ranges follow the weights.

    Args:
        prepared: a network whose ranges were collected; changed in place.
        observe: whether the activation observers keep observing.
    """
    _switch(prepared, quantize=True)
    for quantizer in activation_observers(prepared):
        if isinstance(quantizer, FakeQuantizeBase) and not isinstance(quantizer, FixedQParamsFakeQuantize):
            quantizer.enable_observer(observe)
    prepared.requires_grad_(requires_grad=True)


def freeze_ranges(prepared: GraphModule) -> None:
    """Stop the activation observers; those of weights keep running."""
    for quantizer in activation_observers(prepared):
        if isinstance(quantizer, FakeQuantizeBase):
            quantizer.disable_observer()


def _is_calibrated(module: nn.Module) -> bool:
    fixed = isinstance(module, FixedQParamsFakeQuantize)
    return isinstance(module, FakeQuantizeBase) and not fixed and finds_one_range(module)


def _histogram_like(quantizer: nn.Module) -> HistogramObserver:
    observer: Any = FAMILY.observer_of(quantizer)
    histogram = HistogramObserver(**FAMILY.number_format(quantizer), eps=float(observer.eps))
    match_histogram_levels(histogram)
    return histogram


def _observe(histogram: nn.Module, _quantizer: nn.Module, inputs: tuple[Any, ...]) -> None:
    histogram.to(inputs[0].device)(inputs[0].detach())


def _follow(quantizer: Any) -> None:
    """Let a weight's range be that of the current weight, not a moving average of former ones."""
    observer: Any = FAMILY.observer_of(quantizer)
    if hasattr(observer, "averaging_constant"):
        observer.averaging_constant = 1.0


@torch.no_grad()
def _take_range(quantizer: Any, histogram: HistogramObserver) -> None:
    """Give a fake quantizer the range that a histogram found: its scale, and the ends that it is computed from."""
    scale, zero_point = histogram.calculate_qparams()
    low, high = FAMILY.observed_range(histogram)
    observer = quantizer.activation_post_process
    for owner, name, value in (
        (quantizer, "scale", scale),
        (quantizer, "zero_point", zero_point),
        (observer, "min_val", torch.tensor(low)),
        (observer, "max_val", torch.tensor(high)),
    ):
        former = getattr(owner, name)
        former.resize_(value.shape).copy_(value)


def _switch(prepared: nn.Module, *, quantize: bool) -> None:
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_fake_quant(quantize)
