"""Gives the network's input quantizer a separate bit width, and the known range instead of the observed one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dfq_brevitas.framework import ActQuantProxyFromInjectorBase, ParameterFromRuntimeStatsScaling, quant_nn
from dfq_brevitas.quantizers import LAYERS, QuantReLU6
from dfq_plugins.network.graph_inputs import input_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfq_brevitas.framework import GraphModule, Node
    from dfq_plugins.types import Specification


_ACTIVATIONS = (quant_nn.QuantReLU, QuantReLU6, quant_nn.QuantSigmoid)

_PRODUCTS = frozenset(
    (
        *(functional.linear, functional.conv1d, functional.conv2d, functional.conv3d),
        *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
        *(torch.matmul, torch.bmm, torch.einsum, "matmul", "bmm"),
    )
)
"""Functions that multiply their inputs with weights, or with each other."""


def input_quantizers(graph: GraphModule, placeholder: Node) -> Iterator[tuple[str, Any]]:
    """Yield the name and module of each quantizer that reads an input of the network directly."""
    for node in placeholder.users:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, quant_nn.QuantIdentity):
                yield str(node.target), module


def quantizers_before_weights(graph: GraphModule, placeholders: Iterable[Node]) -> Iterator[tuple[str, Any]]:
    """Yield the quantizers behind padding, pooling and elementwise operations on nothing but the network's inputs.

    Those that read an input directly, and those that share their scale with another tensor, are left out.
    """
    derived = set(placeholders)
    direct = {name for node in derived for name, _ in input_quantizers(graph, node)}
    for node in graph.graph.nodes:
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if not sources or not derived.issuperset(sources) or _has_weights(graph, node):
            continue
        derived.add(node)
        if node.op != "call_module" or str(node.target) in direct:
            continue
        module = graph.get_submodule(str(node.target))
        if isinstance(module, (quant_nn.QuantIdentity, *_ACTIVATIONS)) and not _is_shared(graph, module):
            yield str(node.target), module


def _has_weights(graph: GraphModule, node: Node) -> bool:
    """Return whether an operation multiplies its inputs with weights, or with each other."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return isinstance(module, LAYERS) or hasattr(module, "weight_quant")
    return node.target in _PRODUCTS


def is_signed(quantizer: Any) -> bool:
    """Return whether an activation quantizer has negative integers."""
    return bool(quantizer.act_quant.is_signed)


def replace_input_quantizers(graph: GraphModule, placeholder: Node, new: tuple[Any, dict[str, Any]]) -> None:
    """Replace the quantizer of an input, in place. Call it before calibration.

    An input that is also added to another tensor keeps the quantizer whose scale both share.
    """
    kind, arguments = new
    for name, quantizer in list(input_quantizers(graph, placeholder)):
        if not _is_shared(graph, quantizer):
            graph.set_submodule(name, kind(**arguments).eval())


def fix_input_ranges(graph: GraphModule, spec: Specification) -> int:
    """Set the scale of each input's quantizer so that it just covers the known range. Call it after calibration.

    Brevitas stores a calibrated scale as a parameter `value`, the threshold: scale = value / 2**(bits - 1) if signed,
    value / (2**bits - 1) if unsigned. A threshold that covers both ends of a symmetric signed grid is
    `max(-lowest, highest * 2**(bits-1) / (2**(bits-1) - 1))`.

    Returns:
        Number of quantizers set: 0 if an addition shares the scale with another tensor; it then stays as calibrated.
    """
    fixed = list(_own_scalings(graph, spec))
    for quantizer, scaling, input_range in fixed:
        bits = int(quantizer.act_quant.bit_width())
        threshold = _threshold(input_range, bits, signed=bool(quantizer.act_quant.is_signed))
        with torch.no_grad():  # a power-of-two scale is stored as its logarithm
            scaling.value.copy_(scaling.restrict_scaling_pre(torch.full_like(scaling.value, threshold)))
    return len(fixed)


def known_input_scalings(graph: GraphModule, spec: Specification) -> list[Any]:
    """Return the modules whose scales `fix_input_ranges` sets."""
    return [scaling for _, scaling, _ in _own_scalings(graph, spec)]


def _own_scalings(graph: GraphModule, spec: Specification) -> Iterator[tuple[Any, Any, tuple[float, float]]]:
    """Yield the quantizer of each input with a known range, if its scale is its own: with that scale and the range."""
    for placeholder, one in input_nodes(graph, spec):
        for _, quantizer in list(input_quantizers(graph, placeholder)):
            scaling = quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
            own = isinstance(scaling, ParameterFromRuntimeStatsScaling) and not _is_shared(graph, quantizer)
            if own and one.input_range is not None:
                yield quantizer, scaling, one.input_range


def _threshold(input_range: tuple[float, float], bits: int, *, signed: bool) -> float:
    """Return the threshold of the smallest symmetric grid that covers the input range.

    >>> round(_threshold((-1.0, 1.0), 8, signed=True), 6)
    1.007874
    >>> _threshold((0.0, 1.0), 8, signed=False)
    1.0
    """
    lowest, highest = input_range
    if not signed:
        return highest
    half = float(2 ** (bits - 1))
    return max(-lowest, highest * half / (half - 1))


def _is_shared(graph: GraphModule, quantizer: Any) -> bool:
    """Return whether another quantizer uses the same scale."""
    scaling = quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    proxies = {id(module): module for module in graph.modules() if isinstance(module, ActQuantProxyFromInjectorBase)}
    sharing = 0
    for proxy in proxies.values():
        fused = proxy.fused_activation_quant_proxy
        sharing += fused is not None and getattr(fused.tensor_quant, "scaling_impl", None) is scaling
    return sharing > 1
