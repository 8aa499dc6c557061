"""Brevitas's quantizers, as the host's reconstruction reads, replaces and sets them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.additions import Shortcut
from dfq_brevitas.bias import is_weight_layer
from dfq_brevitas.framework import (
    GraphModule,
    ParameterFromRuntimeStatsScaling,
    ParameterFromStatsFromParameterScaling,
    QuantTensor,
    brevitas_config,
    map_arg,
    nonlinear,
    quantization_status_manager,
)
from dfq_brevitas.input_range import known_input_scalings
from dfq_brevitas.quantizers import ClippedReLU
from dfq_plugins.errors import UsageError
from dfq_plugins.types import QuantizedLayer, QuantizedView, QuantizerHandle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.fx import Node

    from dfq_brevitas.options import BrevitasOptions
    from dfq_plugins.types import Recipe, Specification

_LEARNABLE = (ParameterFromRuntimeStatsScaling, ParameterFromStatsFromParameterScaling)
_IDEMPOTENT: tuple[type[nn.Module], ...] = (nn.ReLU, ClippedReLU)


class TensorQuantHandle(QuantizerHandle):
    """One `RescalingIntQuant`, whose scaling stores `value = scale * threshold` of the integers."""

    def __init__(self, name: str, tensor_quant: Any, *, fixed: bool) -> None:
        self._tensor_quant = tensor_quant
        bits, integers = tensor_quant.msb_clamp_bit_width_impl(), tensor_quant.int_quant
        lowest, highest = int(integers.min_int(bits)), int(integers.max_int(bits))
        super().__init__(name, lowest=lowest, highest=highest, fixed=fixed)

    @property
    def key(self) -> int:
        """The identity of the scaling, which several quantizers may share."""
        return id(self._tensor_quant.scaling_impl)

    def scale(self) -> Tensor:
        """Return the step between two levels."""
        with torch.no_grad():
            scaling, threshold = self._tensor_quant.scaling_impl, self._threshold()
            value: Tensor = scaling(scaling.value, threshold)
            return value.detach().clone()

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Set the stored value."""
        value = self._tensor_quant.scaling_impl.value
        value.copy_((scale * self._threshold()).reshape(value.shape))

    @contextmanager
    def replaced(self, quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Within the block, call the function in place of the quantizer's forward."""
        quantizer = self._tensor_quant

        def forward(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            values, scale = quantize(inputs)
            bits = quantizer.msb_clamp_bit_width_impl()
            return values, scale, quantizer.zero_point_impl(inputs, scale, bits), bits

        vars(quantizer)["forward"] = forward
        try:
            yield
        finally:
            del vars(quantizer)["forward"]

    def _threshold(self) -> Tensor:
        threshold: Tensor = self._tensor_quant.int_scaling_impl(self._tensor_quant.msb_clamp_bit_width_impl())
        return threshold


def quantized_view(
    graph: GraphModule, spec: Specification, recipe: Recipe, options: BrevitasOptions, *, training: bool
) -> QuantizedView:
    """Return the quantizers of a prepared graph; known ranges and powers of two are fixed.

    Raises:
        UsageError: the weights are binary, their scales follow them in training, or Brevitas is compiled.
    """
    _require_settable(recipe, options, training=training)
    known = known_input_scalings(graph, spec) if options.known_input_range else ()
    handles = _Handles(fixed={id(scaling) for scaling in known}, every=options.power_of_two_scales)
    names = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    found = (_layer(name, graph.get_submodule(name), handles) for name in names)
    off = {"disable_act_quant": True, "disable_weight_quant": True, "disable_bias_quant": True}
    return QuantizedView(
        layers=tuple(layer for layer in found if layer is not None),
        floating=partial(quantization_status_manager, graph, is_training=False, **off),
        graph=_with_activations_apart(graph),
        plain=_plain,
    )


def _require_settable(recipe: Recipe, options: BrevitasOptions, *, training: bool) -> None:
    if recipe.weight_bits == 1:
        raise UsageError(
            f"reconstruct learns how weights are rounded, but binary weights have only two values, got {recipe}. Use "
            "at least 2 bits, or fine-tune."
        )
    if training and not options.learned_weight_scales:
        raise UsageError(
            "reconstruct stores learned weight scales, but with learned_weight_scales=false they are computed from the "
            "weights at every step. Use learned_weight_scales=true."
        )
    if brevitas_config.JIT_ENABLED:
        raise UsageError(
            "reconstruct replaces Brevitas's quantizers, which TorchScript does not allow. Unset BREVITAS_JIT."
        )


@dataclass
class _Handles:
    """The handles of all quantizers, one for each, also where several modules share it.

    Args:
        fixed: identities of the scalings that stay as they are.
        every: whether all of them do.
    """

    fixed: set[int]
    every: bool
    known: dict[int, TensorQuantHandle] = field(default_factory=dict)

    def of(self, name: str, tensor_quant: Any) -> TensorQuantHandle | None:
        """Return the handle of a quantizer; None if its scale is not stored."""
        scaling = getattr(tensor_quant, "scaling_impl", None)
        if not isinstance(scaling, _LEARNABLE):
            return None
        if id(tensor_quant) not in self.known:
            fixed = self.every or id(scaling) in self.fixed
            self.known[id(tensor_quant)] = TensorQuantHandle(name, tensor_quant, fixed=fixed)
        return self.known[id(tensor_quant)]


def _layer(name: str, module: Any, handles: _Handles) -> QuantizedLayer | None:
    if is_weight_layer(module) and module.weight_quant.is_quant_enabled:
        weight = handles.of(f"{name}.weight", module.weight_quant.tensor_quant)
        return None if weight is None else QuantizedLayer(name, module, weight, ())
    if isinstance(module, nonlinear.QuantNonLinearActLayer) and module.act_quant.is_quant_enabled:
        fused = module.act_quant.fused_activation_quant_proxy
        handle = None if fused is None else handles.of(f"{name}.output", fused.tensor_quant)
        return None if handle is None else QuantizedLayer(name, module, None, (handle,))
    return None


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, QuantTensor) else value


class _Activation(nn.Module):
    """An activation in float, in front of the quantizers that apply it again."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inputs: Any) -> Any:
        """Apply the activation to plain values."""
        return self.activation(_plain(inputs))


def _with_activations_apart(graph: GraphModule) -> torch.fx.GraphModule:
    """Return the graph with each activation applied before it is quantized as well, where that changes nothing.

    So the values after an activation have a node, with which blocks can end: errors below zero do not count there.
    """
    copied = _torch_graph(graph)
    view = torch.fx.GraphModule(graph, copied)
    for node in list(copied.nodes):
        activations = [_activation(view, user) for user in node.users]
        kinds = {type(activation) for activation in activations}
        if len(kinds) != 1 or not isinstance(activations[0], _IDEMPOTENT):
            continue
        name = f"{node.name}_activation"
        view.add_module(name, _Activation(activations[0]))
        readers = list(node.users)
        with copied.inserting_after(node):
            apart = copied.call_module(name, (node,))
        for reader in readers:
            reader.replace_input_with(node, apart)
    view.recompile()
    return view


def _torch_graph(graph: GraphModule) -> torch.fx.Graph:
    """Return torch's copy of a graph of Brevitas's fork of FX."""
    copied = torch.fx.Graph()
    nodes: dict[Any, Any] = {}
    for node in graph.graph.nodes:
        args, kwargs = map_arg(node.args, nodes.__getitem__), map_arg(node.kwargs, nodes.__getitem__)
        nodes[node] = copied.create_node(node.op, node.target, tuple(args), dict(kwargs), name=node.name)
    return copied


def _activation(graph: torch.fx.GraphModule, node: Node) -> nn.Module | None:
    """Return the activation that a node applies to its only input, if it does."""
    module: Any = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, Shortcut):
        return module.activation
    if isinstance(module, nonlinear.QuantNonLinearActLayer):
        fused = module.act_quant.fused_activation_quant_proxy
        found: nn.Module | None = None if fused is None else fused.activation_impl
        return found
    return None
