"""One scale for all quantizers whose outputs are added or concatenated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.finn.roles import Role, role_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfq_brevitas.framework import GraphModule, Node


class FixedThreshold(nn.Module):
    """Replaces Brevitas's computation of a width's largest integer, so quantizers of different widths share a scale.

    Brevitas stores the end of the range and divides it by that integer. If all quantizers use the same divisor, a
    shared range end gives a shared scale.
    """

    threshold: torch.Tensor

    def __init__(self, threshold: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())

    def forward(self, bit_width: torch.Tensor, signed: Any = None) -> torch.Tensor:  # noqa: ARG002  Brevitas's call
        """Return the fixed integer."""
        return self.threshold


def share_scales(graph: GraphModule) -> None:
    """Give the quantizers in front of each addition and concatenation the largest of their scales, in place.

    The largest covers them all. Call it after calibration, which finds a scale for each. They share the parameter from
    then on, so training keeps them equal.
    """
    for names in scale_groups(graph):
        quantizers = [graph.get_submodule(name).act_quant.fused_activation_quant_proxy.tensor_quant for name in names]
        scales = [graph.get_submodule(name).act_quant.scale().item() for name in names]
        widest = quantizers[scales.index(max(scales))]
        threshold = FixedThreshold(widest.int_scaling_impl(widest.msb_clamp_bit_width_impl()))
        for quantizer in quantizers:
            quantizer.scaling_impl, quantizer.int_scaling_impl = widest.scaling_impl, threshold


def scale_groups(graph: GraphModule) -> tuple[tuple[str, ...], ...]:
    """Return the names of the quantizers that must share a scale, group by group."""
    groups: list[set[str]] = []
    for node in graph.graph.nodes:
        if role_of(graph, node) is Role.JOIN:
            joined = {name for source in node.all_input_nodes for name in _quantizers_behind(graph, source)}
            met = [group for group in groups if group & joined]
            groups = [group for group in groups if group not in met] + [joined.union(*met)]
    return tuple(tuple(sorted(group)) for group in groups if len(group) > 1)


def _quantizers_behind(graph: GraphModule, node: Node) -> Iterator[str]:
    """Yield the quantizers whose grid a node's values are on."""
    role = role_of(graph, node)
    if role in (Role.ACTIVATION, Role.QUANTIZER):
        yield str(node.target)
    elif role is Role.MOVE or (role is Role.JOIN and node.op == "call_module"):
        for source in node.all_input_nodes:
            yield from _quantizers_behind(graph, source)
