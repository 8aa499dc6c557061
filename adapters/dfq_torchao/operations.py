"""The operations of exported graphs that the adapter needs to know: those that move values, and changes of format."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.fx import Node

_aten = torch.ops.aten

ACTIVATIONS: dict[Any, type[nn.Module]] = {
    _aten.relu.default: nn.ReLU,
    _aten.relu_.default: nn.ReLU,
    _aten.hardtanh.default: nn.Hardtanh,
    _aten.hardtanh_.default: nn.Hardtanh,
    _aten.hardswish.default: nn.Hardswish,
    _aten.hardswish_.default: nn.Hardswish,
    _aten.silu.default: nn.SiLU,
    _aten.silu_.default: nn.SiLU,
    _aten.leaky_relu.default: nn.LeakyReLU,
    _aten.leaky_relu_.default: nn.LeakyReLU,
    _aten.tanh.default: nn.Tanh,
    _aten.gelu.default: nn.GELU,
}
"""Activations that backends fuse into the layer before them, with the module that quantizers know them as."""

LAYERS: dict[Any, type[nn.Module]] = {
    _aten.conv1d.default: nn.Conv1d,
    _aten.conv2d.default: nn.Conv2d,
    _aten.linear.default: nn.Linear,
}
"""Layers, with the module that quantizers know them as."""

_MOVING = frozenset(
    (
        operator.getitem,
        _aten.flatten.using_ints,
        _aten.reshape.default,
        _aten.view.default,
        _aten.permute.default,
        _aten.transpose.int,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
        _aten.unflatten.int,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.expand.default,
        _aten.slice.Tensor,
        _aten.select.int,
        _aten.chunk.default,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.dropout.default,
        _aten.max_pool1d.default,
        _aten.max_pool2d.default,
        _aten.max_pool3d.default,
        _aten.pixel_shuffle.default,
        _aten.pixel_unshuffle.default,
        _aten.channel_shuffle.default,
        _aten.movedim.int,
        _aten.numpy_T.default,
        _aten.t.default,
    )
)
_PADS = frozenset((_aten.pad.default, _aten.constant_pad_nd.default))
_FILL_POSITIONS = {_aten.pad.default: 3, _aten.constant_pad_nd.default: 2}

_PASSIVE = frozenset(
    (
        _aten.sym_size.int,
        _aten.to.dtype,
        _aten._assert_tensor_metadata.default,  # noqa: SLF001  a public operator with that name
        _aten.detach.default,
        _aten.lift_fresh_copy.default,
        _aten.zeros.default,
        _aten.ones.default,
        _aten.full.default,
        _aten.new_zeros.default,
        _aten.new_ones.default,
        _aten.new_full.default,
        _aten.zeros_like.default,
        _aten.ones_like.default,
    )
)


def moves_values(node: Node) -> bool:
    """Return whether a node only moves, repeats, drops or zero-pads values: the range including zero is unchanged."""
    if node.target in _PADS:
        position = _FILL_POSITIONS[node.target]
        return not (node.args[position] if len(node.args) > position else node.kwargs.get("value"))
    return node.op == "call_function" and node.target in _MOVING


def is_quantize(node: Any) -> bool:
    """Return whether a node turns floating-point values into integers."""
    return _short_name(node).startswith(("quantize_per", "quantize_affine"))


def is_dequantize(node: Any) -> bool:
    """Return whether a node turns integers into floating-point values."""
    return _short_name(node).startswith(("dequantize_per", "dequantize_affine"))


def is_computation(node: Node) -> bool:
    """Return whether a node computes tensors: it is no change of format, and asks for no size."""
    if node.op != "call_function" or is_quantize(node) or is_dequantize(node) or node.target in _PASSIVE:
        return False
    return isinstance(node.target, torch._ops.OpOverload) and node.target is not _aten.sym_size.int  # noqa: SLF001


def short_name(node: Node) -> str:
    """Return the name of an operation without its overload: `conv2d`."""
    return _short_name(node)


def _short_name(node: Any) -> str:
    target = getattr(node, "target", None)
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet, "__name__", getattr(target, "__name__", "")))
