"""The role of each node of a traced network in FINN."""

from __future__ import annotations

import operator
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_brevitas.additions import is_addition
from dfq_brevitas.finn.modules import ChannelSelection, Concatenation
from dfq_brevitas.foreign import Dequantize
from dfq_brevitas.framework import quant_nn
from dfq_brevitas.grid import OnGrid
from dfq_brevitas.quantizers import QuantReLU6

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node


class Role(Enum):
    """How FINN sees a node."""

    INPUT = "the network's input"
    OUTPUT = "the network's output"
    ACTIVATION = "a ReLU, whose quantizer becomes its thresholds"
    QUANTIZER = "a standalone quantizer"
    LAYER = "weights that read integers"
    JOIN = "an addition or concatenation, whose inputs need one scale"
    MOVE = "moves values, or takes the largest of them, and keeps their grid"
    POOL = "a global average, which sums integers"
    AFFINE = "multiplies or adds constants, which FINN moves into thresholds"
    SHAPE = "reads a shape"
    FOREIGN = "an operation unknown to FINN"


PRODUCERS = frozenset((Role.LAYER, Role.AFFINE, Role.POOL))
"""Roles whose output is not on a known quantization grid."""

_KINDS: tuple[tuple[tuple[type[nn.Module], ...], Role], ...] = (
    ((nn.ReLU, nn.ReLU6, quant_nn.QuantReLU, QuantReLU6), Role.ACTIVATION),
    ((quant_nn.QuantIdentity,), Role.QUANTIZER),
    ((ChannelSelection, OnGrid, Dequantize, nn.Identity, nn.MaxPool2d, nn.Flatten), Role.MOVE),
    ((nn.Conv2d, nn.ConvTranspose2d, nn.Linear), Role.LAYER),
    ((Concatenation,), Role.JOIN),
    ((nn.AdaptiveAvgPool2d,), Role.POOL),
    ((nn.BatchNorm1d, nn.BatchNorm2d), Role.AFFINE),
)
_MOVES = (torch.flatten, torch.reshape, torch.squeeze, "flatten", "reshape", "view", "squeeze", "contiguous")
_ARITHMETIC = (operator.mul, operator.sub, operator.truediv, torch.mul, torch.sub, torch.div, "mul", "sub", "div")
_SHAPES = (getattr, "size", "dim")


def role_of(graph: GraphModule, node: Node) -> Role:
    """Return the role of a node in FINN."""
    if node.op in ("placeholder", "output"):
        return Role.INPUT if node.op == "placeholder" else Role.OUTPUT
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return next((role for kinds, role in _KINDS if isinstance(module, kinds)), Role.FOREIGN)
    if node.op not in ("call_function", "call_method"):
        return Role.FOREIGN
    return _role_of_call(graph, node)


def _role_of_call(graph: GraphModule, node: Node) -> Role:
    tensors = [source for source in node.all_input_nodes if role_of(graph, source) is not Role.SHAPE]
    if is_addition(node):
        return Role.JOIN if len(tensors) > 1 else Role.AFFINE
    if node.target in _SHAPES or not tensors:  # such as arithmetic on sizes
        return Role.SHAPE
    if node.target in _MOVES:
        return Role.MOVE
    if node.target in _ARITHMETIC and len(tensors) == 1:
        return Role.AFFINE
    return Role.FOREIGN
