"""Turns a float model into Brevitas's quantized graph, with passes before and after Brevitas's own steps.

Brevitas traces, folds BatchNorm, equalizes and inserts the quantizers. The passes around that are functions that change
a graph in place, one idea each; `passes_before` and `passes_after` list them in order.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dfq_brevitas.additions import quantize_additions, split_shortcuts
from dfq_brevitas.foreign import dequantize_foreign_operations
from dfq_brevitas.framework import (
    GraphModule,
    brevitas_config,
    layerwise_quantize,
    preprocess_for_quantize,
    quantize,
)
from dfq_brevitas.grid import keep_moves_on_grid
from dfq_brevitas.inserted import remember_places
from dfq_brevitas.output import strip_output_quantizers
from dfq_brevitas.quantizers import FLOAT_BITS, LAYERS, UNSIGNED_ACTIVATIONS, quantizer_maps
from dfq_brevitas.signs import make_inputs_unsigned, make_sums_signed
from dfq_brevitas.tracing import preparation_error
from dfq_plugins.network.graph_inputs import with_placeholders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

    from dfq_brevitas.options import BrevitasOptions
    from dfq_brevitas.quantizers import QuantizerMaps
    from dfq_plugins.types import Recipe, Specification

    GraphPass = Callable[[GraphModule], None]


def float_graph(
    model: nn.Module, spec: Specification, options: BrevitasOptions, *, merge_batch_norm: bool
) -> GraphModule:
    """Trace a private copy of the model, fold BatchNorm if requested, and equalize as the options say.

    Raises:
        ModelError: FX cannot trace the model.
    """
    equalize = options.equalization_iterations
    try:
        graph = preprocess_for_quantize(
            with_placeholders(model, spec),
            equalize_iters=equalize,
            # Only equalization moves biases; without it, the layers remain comparable with the caller's.
            equalize_merge_bias=equalize > 0,
            # Equalization scales activations, which ReLU6 does not allow: it clips at a fixed value.
            relu6_to_relu=equalize > 0,
            merge_bn=merge_batch_norm,
        )
    except Exception as error:
        raise preparation_error(model, error) from error
    apply_passes(graph, (keep_moves_on_grid,))
    return graph


def quantized_graph(
    graph: GraphModule, recipe: Recipe, options: BrevitasOptions, *, training: bool = False
) -> GraphModule:
    """Insert Brevitas's quantizers into a float graph, in place.

    If activations stay in float, only the layers are replaced, by Brevitas's layers with quantized weights.

    Raises:
        ModelError: Brevitas cannot handle the graph.
    """
    maps = quantizer_maps(recipe, options, training=training)
    kept = end_layers(graph) if options.keeps_ends(recipe.weight_bits) else ()
    ignored = brevitas_config.IGNORE_MISSING_KEYS
    try:
        if recipe.activation_bits == FLOAT_BITS:
            layerwise = layerwise_quantize(graph, maps.layers, name_blacklist=list(kept))
            return apply_passes(layerwise, ())
        apply_passes(graph, passes_before(recipe, options))
        former = {name for name, _ in graph.named_modules()}
        with _hidden_layers(graph, kept) as unmapped:
            quantized = quantize(
                graph,
                quant_identity_map=maps.identities,
                compute_layer_map=maps.layers | unmapped,
                quant_act_map=maps.activations,
                unsigned_act_tuple=UNSIGNED_ACTIVATIONS,
            )
    except Exception as error:
        raise preparation_error(graph, error) from error
    finally:
        brevitas_config.IGNORE_MISSING_KEYS = ignored  # Brevitas does not restore it when it fails
    remember_places(quantized, former)
    return apply_passes(quantized, passes_after(maps, recipe, options))


def passes_before(recipe: Recipe, options: BrevitasOptions) -> tuple[GraphPass, ...]:
    """Return the passes over the float graph, in order."""
    if options.addition_bits == recipe.activation_bits:
        return ()
    wider = quantizer_maps(replace(recipe, activation_bits=options.addition_bits), options)
    return (partial(quantize_additions, quantizer=wider.identities["signed"]),)


def passes_after(maps: QuantizerMaps, recipe: Recipe, options: BrevitasOptions) -> tuple[GraphPass, ...]:
    """Return the passes over the graph after Brevitas has inserted its quantizers, in order."""
    for_additions: tuple[GraphPass, ...] = ()
    if options.addition_bits != recipe.activation_bits:
        for_additions = (partial(make_sums_signed, quantizer=maps.identities["signed"]), split_shortcuts)
    return (
        *for_additions,
        partial(make_inputs_unsigned, quantizer=maps.identities["unsigned"]),
        strip_output_quantizers,
        dequantize_foreign_operations,
    )


def apply_passes(graph: GraphModule, passes: Iterable[GraphPass]) -> GraphModule:
    """Apply the passes in order, then check and recompile the graph."""
    for change in passes:
        change(graph)
    graph.graph.lint()
    graph.recompile()
    return graph


def end_layers(graph: GraphModule) -> tuple[str, ...]:
    """Return the names of the layers with weights that are called first and last."""
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    names = [name for name in called if isinstance(graph.get_submodule(name), LAYERS)]
    return tuple(dict.fromkeys((names[0], names[-1]))) if names else ()


@contextmanager
def _hidden_layers(graph: GraphModule, names: Iterable[str]) -> Iterator[dict[type[nn.Module], None]]:
    """Give the named layers a temporary subclass within the block, and map it to None so `quantize` skips them."""
    layers = [(graph.get_submodule(name), type(graph.get_submodule(name))) for name in names]
    subclasses = {kind: type(f"Float{kind.__name__}", (kind,), {}) for _, kind in layers}
    try:
        for layer, kind in layers:
            layer.__class__ = subclasses[kind]
        yield dict.fromkeys(subclasses.values())
    finally:
        for layer, kind in layers:
            layer.__class__ = kind
