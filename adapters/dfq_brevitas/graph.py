"""From a float model to Brevitas's quantized graph, with what Brevitas leaves open settled by passes around its calls.

Brevitas traces, folds BatchNorm, equalizes and inserts the quantizers. The passes before and after that are functions
that change a graph in place, each with one idea; `passes_before` and `passes_after` list them in order.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dfq_brevitas.additions import part_shortcuts, quantize_additions
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

    from dfq_brevitas.options import BrevitasOptions
    from dfq_brevitas.quantizers import QuantizerMaps
    from dfq_plugins.types import Recipe

    GraphPass = Callable[[GraphModule], None]


def float_graph(model: nn.Module, options: BrevitasOptions, *, merge_batch_norm: bool) -> GraphModule:
    """Trace a private copy of the model, fold BatchNorm if asked to, and equalize as the options say.

    Raises:
        ModelError: FX cannot trace the model.
    """
    equalize = options.equalization_iterations
    try:
        graph = preprocess_for_quantize(
            model,
            equalize_iters=equalize,
            # Only equalization moves biases; without it the layers stay comparable with the caller's.
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

    Where activations stay in float, only the layers are exchanged, for Brevitas's own with quantized weights.

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
        with _disguised(graph, kept) as unmapped:
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
        brevitas_config.IGNORE_MISSING_KEYS = ignored  # Brevitas leaves it switched when it fails
    remember_places(quantized, former)
    return apply_passes(quantized, passes_after(maps, recipe, options))


def passes_before(recipe: Recipe, options: BrevitasOptions) -> tuple[GraphPass, ...]:
    """Return the passes over the float graph, in order."""
    if options.addition_bits == recipe.activation_bits:
        return ()
    wider = quantizer_maps(replace(recipe, activation_bits=options.addition_bits), options)
    return (partial(quantize_additions, quantizer=wider.identities["signed"]),)


def passes_after(maps: QuantizerMaps, recipe: Recipe, options: BrevitasOptions) -> tuple[GraphPass, ...]:
    """Return the passes over the graph that Brevitas inserted its quantizers into, in order."""
    own_width: tuple[GraphPass, ...] = ()
    if options.addition_bits != recipe.activation_bits:
        own_width = (partial(make_sums_signed, quantizer=maps.identities["signed"]), part_shortcuts)
    return (
        *own_width,
        partial(make_inputs_unsigned, quantizer=maps.identities["unsigned"]),
        strip_output_quantizers,
        dequantize_foreign_operations,
    )


def apply_passes(graph: GraphModule, passes: Iterable[GraphPass]) -> GraphModule:
    """Apply passes one after the other, and check and recompile the graph at the end."""
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
def _disguised(graph: GraphModule, names: Iterable[str]) -> Iterator[dict[type[nn.Module], None]]:
    """Give the named layers a class of their own within the block, and map it to None: `quantize` passes it by."""
    layers = [(graph.get_submodule(name), type(graph.get_submodule(name))) for name in names]
    disguises = {kind: type(f"Float{kind.__name__}", (kind,), {}) for _, kind in layers}
    try:
        for layer, kind in layers:
            layer.__class__ = disguises[kind]
        yield dict.fromkeys(disguises.values())
    finally:
        for layer, kind in layers:
            layer.__class__ = kind
