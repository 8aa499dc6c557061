"""Folds BatchNorm into the layer before it, on a traced graph.

Handles every layer with weights: grouped, transposed and linear ones, several BatchNorms in a row, and one behind a
concatenation of layers.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dfq_plugins.network.tracing.operation import SHAPE

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


@torch.no_grad()
def fold_batch_norms(graph: GraphModule) -> None:
    """Fold, in place, each BatchNorm that alone reads the result of a convolution or linear layer.

    The weights become `w * gamma / sqrt(var + eps)` per output channel, the bias
    `(b - mean) * gamma / sqrt(var + eps) + beta`.
    """
    for node in list(graph.graph.nodes):
        if _module(graph, node, _BatchNorm) is not None:
            _split_behind_concatenation(graph, node)
    for node in list(graph.graph.nodes):
        norm = _module(graph, node, _BatchNorm)
        source: Any = node.args[0] if norm is not None and node.args else None
        layer = _foldable_layer(graph, source)
        if norm is None or layer is None or norm.running_mean is None or norm.num_features != _outputs(layer):
            continue
        if isinstance(layer, nn.Linear) and len(source.meta.get(SHAPE) or ()) != 2:  # noqa: PLR2004  (batch, features)
            continue
        _fold(layer, norm)
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
        _remove(graph, str(node.target))
    graph.graph.lint()
    graph.recompile()


def _remove(graph: GraphModule, name: str) -> None:
    """Remove a submodule, but keep its own submodules: a BatchNorm with an activation calls it separately."""
    holder = nn.Module()
    for child, module in graph.get_submodule(name).named_children():
        holder.add_module(child, module)
    graph.delete_submodule(name)
    if next(holder.children(), None) is not None:
        graph.add_submodule(name, holder)


def _foldable_layer(graph: GraphModule, node: Any) -> Any:
    """Return the layer whose result only one node reads, None if the node is not such a call."""
    layer = _module(graph, node, (_ConvNd, nn.Linear))
    if layer is None or len(node.users) != 1 or not layer.weight.is_floating_point():
        return None
    calls = [other for other in graph.graph.nodes if other.op == "call_module" and other.target == node.target]
    return layer if len(calls) == 1 else None


def _module(graph: GraphModule, node: Any, kinds: Any) -> Any:
    if getattr(node, "op", None) != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if isinstance(module, kinds) else None


def _fold(layer: Any, norm: Any) -> None:
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
    folded = _scaled(layer, scale)
    trained = layer.weight.requires_grad
    layer.weight = nn.Parameter(folded.to(layer.weight.dtype), requires_grad=trained)
    layer.bias = nn.Parameter((bias - norm.running_mean) * scale + shift, requires_grad=trained)


def _scaled(layer: Any, scale: Tensor) -> Tensor:
    """Return the weight with every output channel scaled."""
    weight: Tensor = layer.weight
    if isinstance(layer, _ConvTransposeNd):  # (inputs, outputs / groups, *kernel)
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
        factors = scale.reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        return (grouped * factors).reshape(weight.shape)
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def _split_behind_concatenation(graph: GraphModule, node: Node) -> None:
    """Normalize the parts of a concatenation instead of the whole, if each part is a layer that can take it."""
    joined = node.args[0]
    if getattr(joined, "target", None) is not torch.cat or len(joined.users) != 1:  # type: ignore[union-attr]
        return
    parts: Any = joined.args[0]  # type: ignore[union-attr]
    axis = joined.args[1] if len(joined.args) > 1 else joined.kwargs.get("dim", 0)  # type: ignore[union-attr]
    layers = [_foldable_layer(graph, part) for part in parts]
    if axis != 1 or not all(layer is not None for layer in layers):
        return
    norm = _module(graph, node, _BatchNorm)
    widths = list(map(_outputs, layers))
    if sum(widths) != norm.num_features:
        return
    start, normalized = 0, []
    for index, (part, width) in enumerate(zip(parts, widths, strict=True)):
        name = f"{node.target}_part_{index}"
        graph.add_submodule(name, _channels_of(norm, start, start + width))
        with graph.graph.inserting_after(part):
            normalized.append(graph.graph.call_module(name, (part,)))
        start += width
    joined.update_arg(0, normalized)  # type: ignore[union-attr]
    node.replace_all_uses_with(joined)  # type: ignore[arg-type]
    graph.graph.erase_node(node)


def _outputs(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _channels_of(norm: Any, start: int, end: int) -> nn.Module:
    part = copy.deepcopy(norm)
    part.num_features = end - start
    for name in ("weight", "bias"):
        value = getattr(norm, name)
        if value is not None:
            setattr(part, name, nn.Parameter(value[start:end].clone(), requires_grad=value.requires_grad))
    part.running_mean, part.running_var = norm.running_mean[start:end].clone(), norm.running_var[start:end].clone()
    return part.eval()  # type: ignore[no-any-return]
