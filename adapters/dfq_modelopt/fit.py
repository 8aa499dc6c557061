"""The private copy that ModelOpt quantizes: the network's own modules, or its graph where these would hide a layer.

ModelOpt quantizes what a module of `torch.nn` computes in its own forward. A layer with a forward of its own, a weight
that a function multiplies by, and a layer whose forward a fused kernel passes by would stay in float. In the traced
graph each of them is a layer of `torch.nn`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional, modules
from torch.nn.modules.conv import _ConvNd

from dfq_modelopt.framework import quant_nn
from dfq_modelopt.way_round import way_round
from dfq_plugins.errors import ModelError
from dfq_plugins.model_state import hooked
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.graph_inputs import take_inputs_as_given
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.network.trial import blank_run
from dfq_shared.tensorrt.quantizers import LAYERS

if TYPE_CHECKING:
    from torch import nn

    from dfq_modelopt.options import Trace
    from dfq_plugins.types import Specification

OTHER_WEIGHTS = (
    modules.batchnorm._NormBase,  # noqa: SLF001  (torch has no public common base)
    modules.LayerNorm,
    modules.GroupNorm,
    modules.Embedding,
    modules.EmbeddingBag,
    modules.RNNBase,
    modules.RNNCellBase,
    modules.PReLU,
    modules.Bilinear,
)
"""Modules whose weights are no layer's that the recipe is about."""


def fitted(model: nn.Module, spec: Specification, how: Trace) -> nn.Module:
    """Return a private copy of `model` for ModelOpt.

    Args:
        model: the caller's network; not changed.
        spec: its inputs.
        how: whether to trace: always, never, or `auto`, which traces a network with hidden layers if that is possible.

    Raises:
        ModelError: the network cannot be copied, does not run, or, if it must be traced, cannot be.
    """
    private = _with_explicit_padding(fitted_copy(model))
    if how is False or (how == "auto" and not hidden_layers(private, spec)):
        return private
    try:
        graph = trace(_with_explicit_padding(fitted_copy(model)), spec, way_round=way_round)
    except ModelError:
        if how is True:
            raise
        return private  # what then stays in float is listed
    take_inputs_as_given(graph, spec)
    return graph.eval()


def hidden_layers(model: nn.Module, spec: Specification) -> set[str]:
    """Return the names of modules with weights that ModelOpt would leave in float, though they may be layers."""
    called: set[int] = set()
    hooks = (
        module.register_forward_pre_hook(lambda module, _: called.add(id(module)))
        for module in model.modules()
        if isinstance(module, LAYERS)
    )
    with torch.no_grad(), hooked(hooks):
        blank_run(model, spec)
    return {name for name, module in model.named_modules() if _is_hidden(module, called)}


def _is_hidden(module: nn.Module, called: set[int]) -> bool:
    if isinstance(module, LAYERS):
        return id(module) not in called or type(module) not in quant_nn.QuantModuleRegistry
    return not isinstance(module, OTHER_WEIGHTS) and any(
        parameter.dim() > 1 for parameter in module.parameters(recurse=False)
    )


def _with_explicit_padding(model: nn.Module) -> nn.Module:
    """Let a convolution with other padding than zeros pad before its quantizer, in place.

    ModelOpt would pad what it quantized, and TensorRT wants the quantizer right before the convolution.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            module.register_forward_pre_hook(_Padding(module))
            module.padding_mode, module.padding = "zeros", (0,) * len(module.kernel_size)
    return model


class _Padding:
    """A forward pre-hook that pads as the convolution did."""

    def __init__(self, layer: _ConvNd) -> None:
        self.sizes, self.mode = list(layer._reversed_padding_repeated_twice), layer.padding_mode  # noqa: SLF001  (torch's)

    def __call__(self, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (functional.pad(inputs[0], self.sizes, mode=self.mode), *inputs[1:])
