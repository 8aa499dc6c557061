"""Inserts exactly one quantizer after each producer of a network in FINN's form."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.configuration import kept_configuration
from dfq_brevitas.finn.modules import Averaging, ChannelSelection, QuantAveraging
from dfq_brevitas.finn.roles import PRODUCERS, Role, role_of
from dfq_brevitas.foreign import Dequantize
from dfq_brevitas.framework import act_handler, brevitas_config, layer_handler
from dfq_brevitas.quantizers import QuantReLU6, quantizer_maps, weight_quantizer
from dfq_brevitas.way_round import way_round
from dfq_plugins.quantization.step_errors import step_errors

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node
    from dfq_brevitas.options import BrevitasOptions
    from dfq_plugins.types import Recipe

    Quantizer = tuple[Any, dict[str, Any]]

_AVERAGING_BITS = 2
_PLAIN = (Role.AFFINE, Role.JOIN, Role.OUTPUT)


def finn_quantized_graph(
    graph: GraphModule, recipe: Recipe, options: BrevitasOptions, *, training: bool = False
) -> GraphModule:
    """Insert Brevitas's quantizers into a float graph of FINN's operators, in place.

    FINN turns each quantizer into thresholds, and a ReLU with its quantizer into one set of them. So each ReLU has one
    unsigned quantizer that all readers share. Any other tensor that a layer, addition or concatenation reads has one
    signed quantizer after its producer. Global averages are not quantized: they sum integers.

    Biases stay in float unless requested: FINN adds them to the thresholds. If a bias is left over at the network's
    end, FINN scales it, and a quantized bias would then keep a type that no longer fits its values.

    Args:
        graph: the graph returned by `finn_form`.
        recipe: bit widths of weights and activations.
        options: `addition_bits` is the width of signed quantizers that no layer reads.
        training: whether the graph will be trained.

    Raises:
        ModelError: Brevitas cannot replace a module.
    """
    maps = quantizer_maps(recipe, options, training=training)
    wide = quantizer_maps(replace(recipe, activation_bits=options.addition_bits), options).identities["signed"]
    two_bits = weight_quantizer(replace(recipe, weight_bits=_AVERAGING_BITS), options)
    averaging = (QuantAveraging, maps.layers[nn.Conv2d][1] | {"weight_quant": two_bits})
    layers = maps.layers | {Averaging: averaging, ChannelSelection: None}  # None: already quantized
    with step_errors("Brevitas", "prepare", graph, way_round), kept_configuration():
        brevitas_config.IGNORE_MISSING_KEYS = True  # scales are new
        act_handler(graph, layer_map=maps.activations)
        layer_handler(graph, layer_map=layers, requantize_output=False, quant_identity_map={})
    for node in list(graph.graph.nodes):
        role = role_of(graph, node)
        produces = role in PRODUCERS or role is Role.INPUT or (role is Role.JOIN and node.op != "call_module")
        if produces and _needs_integers(graph, node):
            narrow = role is Role.INPUT or _layer_reads(graph, node)
            _quantize_output(graph, node, maps.identities["signed"] if narrow else wide)
    _dequantize(graph)
    graph.graph.lint()
    graph.recompile()
    return graph


def release_clipping(graph: GraphModule) -> None:
    """Let the quantizer of each ReLU6 do the clipping, in place, because FINN does not support a clipped ReLU.

    Call it at the end of calibration: while biases are corrected, quantizers are switched off to run the float network,
    which clips. The range was calibrated after clipping and does not exceed 6, so the quantized values stay the same;
    if a shared or power-of-two scale exceeds it, the network clips at the end of that scale instead.
    """
    for module in graph.modules():
        if isinstance(module, QuantReLU6):
            module.act_quant.fused_activation_quant_proxy.activation_impl = nn.ReLU()


def _needs_integers(graph: GraphModule, node: Node) -> bool:
    """Return whether any reader needs the node's values as integers; ReLUs and operations with constants do not."""
    if role_of(graph, node) is Role.INPUT:
        return True
    return any(_reads_integers(graph, user, pooled=role_of(graph, node) is Role.POOL) for user in node.users)


def _reads_integers(graph: GraphModule, user: Node, *, pooled: bool) -> bool:
    role = role_of(graph, user)
    if role is Role.MOVE:
        return any(_reads_integers(graph, further, pooled=pooled) for further in user.users)
    # A global average produces sums, which are integers: a layer reads them as they are.
    return role is Role.JOIN or (role in (Role.LAYER, Role.POOL) and not pooled)


def _layer_reads(graph: GraphModule, node: Node) -> bool:
    """Return whether a layer reads a node's values at the recipe's width, possibly through moves.

    The outputs of an average pooling are sums, not activations of the recipe's width.
    """
    if _is_averaging(graph, node):
        return False
    return any(
        role_of(graph, user) is Role.LAYER or (_passes_on(graph, user) and _layer_reads(graph, user))
        for user in node.users
    )


def _passes_on(graph: GraphModule, node: Node) -> bool:
    role = role_of(graph, node)
    return role is Role.MOVE or (role is Role.JOIN and node.op == "call_module")


def _is_averaging(graph: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), QuantAveraging)


def _quantize_output(graph: GraphModule, node: Node, quantizer: Quantizer) -> None:
    """Insert one quantizer after a node for all readers except the network's output."""
    kind, arguments = quantizer
    name = f"{node.name}_quant"
    graph.add_module(name, kind(**arguments).eval())
    readers = [user for user in node.users if role_of(graph, user) not in (Role.OUTPUT, Role.SHAPE)]
    with graph.graph.inserting_after(node):
        quantized = graph.graph.call_module(name, (node,))
    for reader in readers:
        reader.replace_input_with(node, quantized)


def _dequantize(graph: GraphModule) -> None:
    """Insert a `Dequantize` in front of operations that do not support Brevitas's quantized tensors."""
    graph.add_module("dequantize", Dequantize())
    for node in list(graph.graph.nodes):
        concatenates = node.op == "call_module" and role_of(graph, node) is Role.JOIN
        if role_of(graph, node) not in _PLAIN or concatenates:
            continue
        for source in node.all_input_nodes:
            with graph.graph.inserting_before(node):
                plain = graph.graph.call_module("dequantize", (source,))
            node.replace_input_with(source, plain)
