"""The private copy that ModelOpt quantizes: the network's own modules, or its graph where these would hide a layer.

ModelOpt quantizes what a module of `torch.nn` computes in its own forward. A layer with a forward of its own, a weight
that a function multiplies by, and a layer whose forward a fused kernel passes by would stay in float. In the traced
graph each of them is a layer of `torch.nn`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        how: whether to trace: always, never, or `auto`, which traces a network whose graph has layers that it
            hides, if that is possible.

    Raises:
        ModelError: the network cannot be copied, does not run, or, if it must be traced, cannot be.
    """
    private = _with_explicit_padding(fitted_copy(model))
    covered = None if how is True else covered_weights(private, spec)
    if how is False or (covered is not None and not _may_hide_layers(private, covered)):
        return private
    try:
        graph = trace(private, spec, way_round=way_round)
    except ModelError:
        if covered is None:
            raise
        return _with_explicit_padding(fitted_copy(model))  # what then stays in float is listed
    if covered is not None and not any(id(layer.weight) not in covered for layer in _layers(graph)):
        return _with_explicit_padding(fitted_copy(model))  # its other weights are no layer's
    take_inputs_as_given(graph, spec)
    return graph.eval()


def covered_weights(model: nn.Module, spec: Specification) -> set[int]:
    """Return the identities of the weights of the layers that ModelOpt would quantize in `model`."""
    called: set[int] = set()
    hooks = (
        layer.register_forward_pre_hook(lambda layer, _: called.add(id(layer.weight)))
        for layer in _layers(model)
        if type(layer) in quant_nn.QuantModuleRegistry
    )
    with torch.no_grad(), hooked(hooks):
        blank_run(model, spec)
    return called


def _may_hide_layers(model: nn.Module, covered: set[int]) -> bool:
    """Return whether a module has a weight that is not covered, nor one of a module that has other weights."""
    others = (module for module in model.modules() if not isinstance(module, OTHER_WEIGHTS))
    weights = (parameter for module in others for parameter in module.parameters(recurse=False) if parameter.dim() > 1)
    return any(id(weight) not in covered for weight in weights)


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LAYERS)]


def _with_explicit_padding(model: nn.Module) -> nn.Module:
    """Let a convolution with other padding than zeros pad before its quantizer, in place.

    ModelOpt would pad what it quantized, and TensorRT wants the quantizer right before the convolution. A subclass with
    its own forward is left alone: it may do anything with these settings.
    """
    module: Any
    for module in model.modules():
        of_torch = isinstance(module, _ConvNd) and type(module) in quant_nn.QuantModuleRegistry
        if of_torch and module.padding_mode != "zeros":
            module.register_forward_pre_hook(_Padding(module), with_kwargs=True)
            module.padding_mode, module.padding = "zeros", (0,) * len(module.kernel_size)
    return model


class _Padding:
    """A forward pre-hook that pads as the convolution did."""

    def __init__(self, layer: _ConvNd) -> None:
        self.sizes, self.mode = list(layer._reversed_padding_repeated_twice), layer.padding_mode  # noqa: SLF001  (torch's)

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        padded = functional.pad(inputs[0] if inputs else named["input"], self.sizes, mode=self.mode)
        return (padded,), {}
