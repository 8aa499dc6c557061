"""From a float model to Brevitas's quantized graph, with what Brevitas leaves open settled around its own calls.

Brevitas traces, folds BatchNorm, equalizes and inserts the quantizers. Around that, this module

- keeps slicing, padding and similar moves of values on the quantization grid (`OnGrid`), so that a shortcut which
  slices (ResNets with option A) is aligned with the branch it is added to, and never meets a plain tuple;
- takes the quantizer off the network's output, so that logits keep the accumulator's precision;
- makes inserted quantizers unsigned where only ReLUs feed them: a sign bit would waste half the levels.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.additions import is_addition, part_shortcuts, quantize_additions
from dfq_brevitas.framework import (
    GraphModule,
    Node,
    QuantTensor,
    brevitas_config,
    layerwise_quantize,
    preprocess_for_quantize,
    quant_nn,
    quantize,
)
from dfq_brevitas.grid import OnGrid
from dfq_brevitas.quantizers import FLOAT_BITS, LAYERS, UNSIGNED_ACTIVATIONS, QuantizerMaps, quantizer_maps
from dfq_brevitas.tracing import preparation_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfq_brevitas.options import BrevitasOptions
    from dfq_plugins.types import Recipe

_POOLINGS = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Dropout,
    nn.Flatten,
    nn.ZeroPad2d,
)
_SIGN_KEEPING_FUNCTIONS = (torch.flatten, torch.reshape, torch.mean, torch.sum, torch.cat)
_SIGN_KEEPING_METHODS = frozenset(("flatten", "reshape", "view", "mean", "sum", "permute", "transpose", "contiguous"))


class Dequantize(nn.Module):
    """Takes the plain tensor out of Brevitas's quantized tensor, for operations that do not know it."""

    def forward(self, inputs: Any) -> Any:
        """Return the values."""
        return inputs.value if isinstance(inputs, QuantTensor) else inputs


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
    _wrap_moves(graph)
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
            return _refreshed(layerwise_quantize(graph, maps.layers, name_blacklist=list(kept)))
        if options.addition_bits != recipe.activation_bits:
            wider = replace(recipe, activation_bits=options.addition_bits)
            quantize_additions(graph, quantizer_maps(wider, options).identities["signed"])
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
    if options.addition_bits != recipe.activation_bits:
        _use_signed_quantizers(quantized, maps)
        part_shortcuts(quantized)
    _use_unsigned_quantizers(quantized, maps)
    _strip_output_quantizers(quantized)
    _dequantize_foreign_operations(quantized)
    return _refreshed(quantized)


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


def _wrap_moves(graph: GraphModule) -> None:
    """Replace slicing and zero padding by `OnGrid` modules."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not _moves_values(node):
            continue
        kwargs = dict(node.kwargs)
        source, *rest = node.args or (kwargs.pop("input"),)
        name = f"{node.name}_on_grid"
        graph.add_module(name, OnGrid(node.target, tuple(rest), kwargs))
        with graph.graph.inserting_before(node):
            moved = graph.graph.call_module(name, (source,))
        node.replace_all_uses_with(moved)
        graph.graph.erase_node(node)
    _refreshed(graph)


def _moves_values(node: Node) -> bool:
    """Tell whether a function node slices, or pads with zeros, one tensor by constants."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.target is operator.getitem:
        index = node.args[1]
        # A plain integer may take an element of a tuple of tensors: that is no tensor operation.
        return isinstance(index, (tuple, slice)) and "size" not in node.all_input_nodes[0].name
    if node.target is nn.functional.pad:
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)  # noqa: PLR2004  its position
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")  # noqa: PLR2004
        return not value or mode != "constant"
    return False


def _use_unsigned_quantizers(graph: GraphModule, maps: QuantizerMaps) -> None:
    """Replace inserted signed quantizers by unsigned ones where nothing negative can arrive."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.name.endswith("_input_quant") and _never_negative(graph, node.args[0]):
            kind, arguments = maps.identities["unsigned"]
            graph.set_submodule(str(node.target), kind(**arguments).eval())


def _use_signed_quantizers(graph: GraphModule, maps: QuantizerMaps) -> None:
    """Replace quantizers of sums that Brevitas made unsigned where something negative can arrive.

    It takes a quantizer that stands before it for unsigned, whatever that is. Shared scales are not replaced: additions
    have quantizers of their own here.
    """
    kind, arguments = maps.identities["signed"]
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.name.endswith("_output_quant"):
            unsigned = not graph.get_submodule(str(node.target)).act_quant.is_signed
            if unsigned and not _never_negative(graph, node.args[0]):
                graph.set_submodule(str(node.target), kind(**arguments).eval())


def _never_negative(graph: GraphModule, node: Node) -> bool:
    """Tell whether a node's values come from ReLUs through operations that keep the sign."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, (quant_nn.QuantReLU, quant_nn.QuantSigmoid)):
            return True
        keeps = isinstance(module, (*_POOLINGS, OnGrid, quant_nn.QuantIdentity))
    elif node.op == "call_function":
        keeps = is_addition(node) or node.target in _SIGN_KEEPING_FUNCTIONS
    else:
        keeps = node.op == "call_method" and (is_addition(node) or node.target in _SIGN_KEEPING_METHODS)
    sources = [source for source in node.all_input_nodes if source.target != "size"]
    return keeps and bool(sources) and all(_never_negative(graph, source) for source in sources)


def _strip_output_quantizers(graph: GraphModule) -> None:
    for output in graph.graph.nodes:
        if output.op == "output":
            for source in output.all_input_nodes:
                _strip_quantizer(graph, source)


def _strip_quantizer(graph: GraphModule, node: Node) -> None:
    """Remove the quantizer that Brevitas put on what the network returns, also before a final reshape."""
    while _only_reshapes(graph, node):
        node = node.all_input_nodes[0]
    if node.op == "call_module" and node.name.endswith("_output_quant"):
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
        graph.delete_submodule(str(node.target))


def _only_reshapes(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), (nn.Flatten, nn.Unflatten))
    if node.op == "call_function":
        return node.target in (torch.flatten, torch.reshape, torch.squeeze)
    return node.op == "call_method" and node.target in ("flatten", "reshape", "view", "squeeze")


def _dequantize_foreign_operations(graph: GraphModule) -> None:
    """Put a `Dequantize` before each operation, and the output, that may meet a quantized tensor it does not know."""
    graph.add_module("dequantize", Dequantize())
    for node in list(graph.graph.nodes):
        if not _is_foreign(graph, node):
            continue
        for source in node.all_input_nodes:
            if source.op == "call_module" and isinstance(graph.get_submodule(str(source.target)), _float_kinds()):
                continue
            with graph.graph.inserting_before(node):
                plain = graph.graph.call_module("dequantize", (source,))
            node.replace_input_with(source, plain)


def _float_kinds() -> tuple[type[nn.Module], ...]:
    """Return the layers that return plain tensors."""
    return (quant_nn.QuantLinear, quant_nn.QuantConv1d, quant_nn.QuantConv2d, quant_nn.QuantConv3d)


def _is_foreign(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return type(graph.get_submodule(str(node.target))) in LAYERS  # kept in float
    if node.op == "call_method":
        return str(node.target) not in _KNOWN_METHODS
    if node.op == "call_function":
        home = getattr(node.target, "__module__", "")
        return home in ("_operator", "operator", "builtins") and node.target not in _KNOWN_OPERATORS
    return str(node.op) == "output"


_KNOWN_OPERATORS = (operator.add, operator.iadd, getattr)
_KNOWN_METHODS = frozenset(("size", "dim", "add", "view", "reshape", "flatten", "transpose", "permute", "contiguous"))


def _refreshed(graph: GraphModule) -> GraphModule:
    graph.graph.lint()
    graph.recompile()
    return graph
