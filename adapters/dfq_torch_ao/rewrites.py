"""Rewrites a traced network so that torch.ao's patterns compute the same as float does.

Each rewrite is exact in float: other spellings, and explicit padding. The tracer has already given each call of a layer
a module of its own, and each layer with stored weights its module.
"""

from __future__ import annotations

import copy
import operator
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Interpreter, Node
from torch.nn import functional

from dfq_torch_ao.observers import observer_of
from dfq_torch_ao.transposed import TRANSPOSED_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import GraphModule

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)
_ARGUMENTS = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
_TRANSPOSED_ARGUMENTS = (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1))
_JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack)


def rewrite(traced: GraphModule, inputs: tuple[Any, ...]) -> None:
    """Apply every rewrite to a traced network in evaluation mode, in place.

    Args:
        traced: the network; its submodules are changed too, so they must not be the caller's.
        inputs: one sample to run it on, to learn how many tensors its operations return.
    """
    results = record_results(traced, inputs)
    for node in list(traced.graph.nodes):
        _list_joined_tensors(node, results)
        _spell_stacked_sum(node, results)
        _pad_explicitly(node, traced, results)
    traced.graph.eliminate_dead_code(is_impure_node=_stays)
    traced.graph.lint()
    traced.recompile()


class _ResultRecorder(Interpreter):
    """Runs a graph without the observers that it may have: they must not see the sample."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.results: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        self.results[n] = _meta(result)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if observer_of(self.fetch_attr(target)) is not None:
            return args[0]
        return super().call_module(target, args, kwargs)


def _meta(result: Any) -> Any:
    """Return tensors without their data, so that a deep network's are not all kept."""
    if isinstance(result, torch.Tensor):
        return result.to("meta")
    return type(result)(map(_meta, result)) if type(result) in (tuple, list) else result


@torch.no_grad()
def record_results(traced: GraphModule, inputs: tuple[Any, ...]) -> dict[Node, Any]:
    """Return what every node computes from `inputs`: tensors on the meta device, and other values as they are."""
    recorder = _ResultRecorder(traced)
    recorder.run(*inputs)
    return recorder.results


def drop_tuple_observers(prepared: GraphModule, results: Mapping[Node, Any]) -> None:
    """Remove, in place, observers that would get a tuple, as behind `MaxPool2d(2, return_indices=True)`."""
    for node in list(prepared.graph.nodes):
        module = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        if observer_of(module) is not None and isinstance(results.get(node), tuple | list):
            node.replace_all_uses_with(node.args[0])
            prepared.graph.erase_node(node)
    prepared.recompile()


def _stays(node: Node) -> bool:
    """Return whether a node without readers has to stay: an operation in place, or an input of the network."""
    in_place = str(getattr(node.target, "__name__", node.target)).rstrip("_") != str(
        getattr(node.target, "__name__", node.target)
    )
    return node.op in ("placeholder", "output", "call_module") or in_place or node.is_impure()


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _list_joined_tensors(node: Node, results: Mapping[Node, Any]) -> None:
    """Spell out the tensors of `cat(x.chunk(2))`: torch.ao would observe the tuple as if it were a tensor."""
    if node.op != "call_function" or node.target not in _JOINS:
        return
    tensors = _argument(node, 0, "tensors")
    if not isinstance(tensors, Node) or not isinstance(results.get(tensors), tuple | list):
        return
    with node.graph.inserting_before(node):
        parts = [_item(tensors, index, results) for index in range(len(results[tensors]))]
    node.args, node.kwargs = (parts, *node.args[1:]), {k: v for k, v in node.kwargs.items() if k != "tensors"}


def _item(sequence: Node, index: int, results: Mapping[Node, Any]) -> Node:
    """Return the node of one tensor of a sequence, looking through slices of the sequence."""
    if sequence.target is operator.getitem and isinstance(sequence.args[1], slice):
        source = sequence.args[0]
        if isinstance(source, Node):
            return _item(source, range(len(results[source]))[sequence.args[1]][index], results)
    return sequence.graph.call_function(operator.getitem, (sequence, index))


def _spell_stacked_sum(node: Node, results: Mapping[Node, Any]) -> None:
    """Spell `stack([x, y]).sum(0)` as x + y: torch.ao stacks integers of different scales as if they had one."""
    if node.target not in (torch.sum, "sum") or set(node.kwargs) - {"dim", "axis", "keepdim"}:
        return
    stacked = node.args[0] if node.args else None
    if not isinstance(stacked, Node) or stacked.target is not torch.stack or _argument(node, 2, "keepdim"):
        return
    tensors = _argument(stacked, 0, "tensors")
    summed = _argument(node, 1, "dim", node.kwargs.get("axis"))
    summed = summed[0] if isinstance(summed, tuple | list) and len(summed) == 1 else summed
    stack_dim, dimensions = _argument(stacked, 1, "dim", 0), results[stacked].dim()
    if not isinstance(tensors, list | tuple) or not isinstance(summed, int) or (summed - stack_dim) % dimensions:
        return
    with node.graph.inserting_before(node):
        total = list(accumulate(tensors, lambda left, right: node.graph.call_function(operator.add, (left, right))))[-1]
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _pad_explicitly(node: Node, traced: GraphModule, results: Mapping[Node, Any]) -> None:
    """Put a padding operation in front of convolutions whose padding torch.ao's int8 kernels do not have."""
    if node.op == "call_module":
        _pad_module(node, traced)
    elif node.op == "call_function" and node.target in (*_CONVOLVE, *TRANSPOSED_FUNCTIONS):
        _spell_out_convolution(node, results)


def _pad_module(node: Node, traced: GraphModule) -> None:
    convolution: Any = traced.get_submodule(str(node.target))
    if type(convolution) not in _CONVOLUTIONS:
        return
    if convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str):
        return
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    around = _around(convolution.padding, convolution.kernel_size, convolution.dilation)
    plain = copy.deepcopy(convolution, {id(p): p for p in convolution.parameters()})
    plain.padding_mode = "zeros"
    plain.padding = _symmetric(around) if mode == "constant" else None
    if plain.padding is None:
        plain.padding = (0,) * len(around)
        _pad_in_front(node, around, mode)
    plain._reversed_padding_repeated_twice = [  # noqa: SLF001  read by forward
        size for size in reversed(plain.padding) for _ in range(2)
    ]
    traced.set_submodule(str(node.target), plain)


def _spell_out_convolution(node: Node, results: Mapping[Node, Any]) -> None:
    """Give a functional convolution all its arguments by position, in tuples: torch.ao's lowering takes no others."""
    weight = results.get(_argument(node, 1, "weight"))
    if not isinstance(weight, torch.Tensor):
        return
    dimensions = weight.dim() - 2
    names = _TRANSPOSED_ARGUMENTS if node.target in TRANSPOSED_FUNCTIONS else _ARGUMENTS
    given = {name: _argument(node, 3 + index, name, default) for index, (name, default) in enumerate(names)}
    plain = {name: value if name == "groups" else _per_dimension(value, dimensions) for name, value in given.items()}
    if isinstance(given["padding"], str):
        around = _around(given["padding"], tuple(weight.shape[2:]), plain["dilation"])
        plain["padding"] = _symmetric(around) or (0,) * dimensions
        if _symmetric(around) is None:
            _pad_in_front(node, around, "constant")
    operands = _argument(node, 0, "input"), _argument(node, 1, "weight"), _argument(node, 2, "bias")
    node.args, node.kwargs = (*operands, *plain.values()), {}


def _per_dimension(value: Any, dimensions: int) -> Any:
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,)
    return sizes * dimensions if len(sizes) == 1 else sizes


def _around(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the padding before and after, for each dimension."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [spread * (size - 1) for size, spread in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(size, size) for size in padding]


def _symmetric(around: list[tuple[int, int]]) -> tuple[int, ...] | None:
    return tuple(before for before, _ in around) if all(before == after for before, after in around) else None


def _pad_in_front(node: Node, around: list[tuple[int, int]], mode: str) -> None:
    sizes = tuple(chain.from_iterable(reversed(around)))  # torch.nn.functional.pad begins with the last dimension
    source = _argument(node, 0, "input")
    with node.graph.inserting_before(node):
        padded = node.graph.call_function(functional.pad, (source, sizes), {"mode": mode})
    node.replace_input_with(source, padded)
