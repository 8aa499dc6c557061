"""Turns a float model into Brevitas's quantized graph, with passes before and after Brevitas's own steps.

Brevitas traces, folds BatchNorm, equalizes and inserts the quantizers. The passes around that are functions that change
a graph in place, one idea each; `passes_before` and `passes_after` list them in order.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from dfq_brevitas.additions import quantize_additions, split_shortcuts
from dfq_brevitas.configuration import kept_configuration, limited_rounds
from dfq_brevitas.foreign import dequantize_foreign_operations
from dfq_brevitas.framework import (
    DuplicateSharedStatelessModule,
    GraphModule,
    RemoveStochasticModules,
    TorchFunctionalToModule,
    layerwise_quantize,
    preprocess_for_quantize,
    quantize,
    symbolic_trace,
)
from dfq_brevitas.grid import keep_moves_on_grid
from dfq_brevitas.inserted import remember_places
from dfq_brevitas.isolation import isolate_functions, isolate_shifts, isolate_tail, quantize_joins
from dfq_brevitas.output import strip_output_quantizers
from dfq_brevitas.quantizers import FLOAT_BITS, LAYERS, UNSIGNED_ACTIVATIONS, quantizer_maps
from dfq_brevitas.signs import make_inputs_unsigned, make_signed
from dfq_brevitas.way_round import way_round
from dfq_plugins.errors import DfqWarning, first_line
from dfq_plugins.network.tracing.batch_norm import fold_batch_norms
from dfq_plugins.network.tracing.pooling import write_uneven_pools
from dfq_plugins.quantization.step_errors import step_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from dfq_brevitas.options import BrevitasOptions
    from dfq_brevitas.quantizers import QuantizerMaps
    from dfq_plugins.types import Recipe

    GraphPass = Callable[[GraphModule], None]


def float_graph(model: GraphModule, options: BrevitasOptions, *, merge_batch_norm: bool) -> GraphModule:
    """Trace a private copy of the model, fold BatchNorm if requested, and equalize as the options say.

    Raises:
        ModelError: FX cannot trace the model.
    """
    equalize = options.equalization_iterations
    if merge_batch_norm:
        fold_batch_norms(model)
    if options.target != "finn":  # which has no hardware for them in either form; its check names the pool
        write_uneven_pools(model)
    preprocess = partial(
        preprocess_for_quantize,
        trace_model=False,
        equalize_iters=equalize,
        # Only equalization moves biases; without it, the layers remain comparable with the caller's.
        equalize_merge_bias=equalize > 0,
        # Equalization scales activations, which ReLU6 does not allow: it clips at a fixed value.
        relu6_to_relu=equalize > 0,
        merge_bn=merge_batch_norm,
    )
    with step_errors("Brevitas", "prepare", model, way_round):
        traced: GraphModule = symbolic_trace(model)
        original = copy.deepcopy(traced)
        try:
            graph: GraphModule = preprocess(traced)
        except Exception:  # noqa: BLE001  Brevitas raises whatever its graph walks run into
            graph = standardized(original)
    apply_passes(graph, (keep_moves_on_grid,))
    return graph


def standardized(graph: GraphModule) -> GraphModule:
    """Return a traced graph with activations as modules, without equalization: its walk is what some networks break."""
    for standard in (TorchFunctionalToModule(), DuplicateSharedStatelessModule(), RemoveStochasticModules()):
        graph = standard.apply(graph)
    return graph


def quantized_graph(
    graph: GraphModule, recipe: Recipe, options: BrevitasOptions, *, samples: Sequence[Tensor], training: bool = False
) -> GraphModule:
    """Insert Brevitas's quantizers into a float graph, in place.

    If activations stay in float, only the layers are replaced, by Brevitas's layers with quantized weights. If Brevitas
    cannot align or run the network, it gets it with functions isolated and quantizers at every join, and a warning.

    Args:
        graph: the float graph.
        recipe: the bit widths.
        options: the settings.
        samples: the inputs for a trial run in order, `(batch, *shape)` each.
        training: whether the graph will be trained.

    Raises:
        ModelError: Brevitas cannot handle the graph.
    """
    maps = quantizer_maps(recipe, options, training=training)
    kept = end_layers(graph) if options.keeps_ends(recipe.weight_bits) else ()
    with step_errors("Brevitas", "prepare", graph, way_round), kept_configuration():
        if recipe.activation_bits == FLOAT_BITS:
            layerwise = layerwise_quantize(graph, maps.layers, name_blacklist=list(kept))
            return apply_passes(layerwise, ())
        insert = partial(_inserted, maps=maps, recipe=recipe, options=options, kept=kept)
        original = copy.deepcopy(graph)
        try:
            quantized = insert(graph, passes_before(recipe, options))
            _require_running(quantized, samples)
        except Exception as error:  # noqa: BLE001  Brevitas raises whatever its graph walks run into
            isolated = insert(original, passes_for_isolation(recipe, options))
            _require_running(isolated, samples)
            warnings.warn(_isolation_note(error), DfqWarning, stacklevel=2)
            return isolated
    return quantized


def _inserted(
    graph: GraphModule,
    before: Iterable[GraphPass],
    *,
    maps: QuantizerMaps,
    recipe: Recipe,
    options: BrevitasOptions,
    kept: Iterable[str],
) -> GraphModule:
    apply_passes(graph, before)
    former = {name for name, _ in graph.named_modules()}
    with _hidden_layers(graph, kept) as unmapped, limited_rounds(graph):
        quantized = quantize(
            graph,
            quant_identity_map=maps.identities,
            compute_layer_map=maps.layers | unmapped,
            quant_act_map=maps.activations,
            unsigned_act_tuple=UNSIGNED_ACTIVATIONS,
        )
    remember_places(quantized, former)
    return apply_passes(quantized, passes_after(maps, recipe, options))


def _require_running(graph: GraphModule, samples: Sequence[Tensor]) -> None:
    """Run the graph once, so that one that cannot run is noticed before any work; in eval mode it records nothing."""
    with torch.no_grad():
        graph.eval()(*samples)


def _isolation_note(error: Exception) -> str:
    return (
        f"Brevitas cannot align the quantizers of this network as it is ({type(error).__name__}: {first_line(error)}). "
        "Each input of an addition or concatenation gets a quantizer of its own, and other functions run in float."
    )


def passes_for_isolation(recipe: Recipe, options: BrevitasOptions) -> tuple[GraphPass, ...]:
    """Return the passes over the float graph of a network that Brevitas cannot align, in order."""
    wider = quantizer_maps(replace(recipe, activation_bits=options.addition_bits), options)
    return (partial(quantize_joins, quantizer=wider.identities["signed"]), isolate_functions)


def passes_before(recipe: Recipe, options: BrevitasOptions) -> tuple[GraphPass, ...]:
    """Return the passes over the float graph, in order."""
    # In FINN, what adds a number is hardware of its own between two quantizers.
    always: tuple[GraphPass, ...] = () if options.target == "finn" else (isolate_shifts, isolate_tail)
    if options.addition_bits == recipe.activation_bits:
        return always
    wider = quantizer_maps(replace(recipe, activation_bits=options.addition_bits), options)
    return (*always, partial(quantize_additions, quantizer=wider.identities["signed"]))


def passes_after(maps: QuantizerMaps, recipe: Recipe, options: BrevitasOptions) -> tuple[GraphPass, ...]:
    """Return the passes over the graph after Brevitas has inserted its quantizers, in order."""
    for_additions: tuple[GraphPass, ...] = ()
    if options.addition_bits != recipe.activation_bits:
        for_additions = (split_shortcuts,)
    return (
        partial(make_signed, quantizer=maps.identities["signed"]),
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
