"""Writes unified operations as an `fx.GraphModule` whose submodules keep their names."""

from __future__ import annotations

import copy
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from dfq_plugins.network.tracing.batch import BatchSize, is_batch_dependent
from dfq_plugins.network.tracing.factories import FACTORIES, write_factory
from dfq_plugins.network.tracing.layers import layer_of
from dfq_plugins.network.tracing.operation import (
    PLACES,
    SHAPE,
    Attribute,
    Constant,
    Operation,
    Place,
    Reference,
    UntraceableError,
    leaves,
    map_values,
)
from dfq_plugins.network.tracing.replacing import replace_items, write_replacement

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCALED: dict[Any, Any] = {torch.add: operator.add, torch.sub: operator.sub}


def write_graph(model: nn.Module, operations: Sequence[Operation], output: Any, shapes: Sequence[Any]) -> GraphModule:
    """Return the graph module of a recorded forward pass.

    Args:
        model: the network, a private copy: the graph module takes its submodules and parameters.
        operations: its operations for any batch size.
        output: what it returns, with references for tensors.
        shapes: the shape of the result of each operation, for one batch size; None if it is not one tensor.
    """
    return _Writer(model, operations, shapes).write(output)


class _Writer:
    """Writes one graph; constants and twins of submodules are added to the network on the way."""

    def __init__(self, model: nn.Module, operations: Sequence[Operation], shapes: Sequence[Any]) -> None:
        self.model = model
        self.operations = operations
        self.shapes = shapes
        self.graph = Graph()
        self.nodes: dict[int, Node] = {}
        self.places: dict[str, Place] = {}
        self.called: set[str] = set()
        self.batch: Any = None
        self.items: dict[Reference, Any] = {}
        self.leftovers: list[tuple[str, str]] = []

    def write(self, output: Any) -> GraphModule:
        wanted = self._wanted(output)
        for index, operation in enumerate(self.operations):
            if operation.from_input and index in wanted:
                self.nodes[index] = self._shaped(index, operation)
        self.graph.output(map_values(self._value, output))
        self._drop_leftovers()
        self.graph.lint()
        module = GraphModule(self.model, self.graph, class_name=type(self.model).__name__)
        module.meta[PLACES] = self.places
        return module

    def _wanted(self, output: Any) -> set[int]:
        """Return the operations that the output needs, and all inputs of the network."""
        wanted = {index for index, operation in enumerate(self.operations) if operation.call.kind == "placeholder"}
        waiting = [value.operation for value in leaves(output) if isinstance(value, Reference)]
        while waiting:
            index = waiting.pop()
            if index not in wanted:
                wanted.add(index)
                call = self.operations[index].call
                given = leaves((call.args, dict(call.kwargs or {})))
                waiting += [value.operation for value in given if isinstance(value, Reference)]
        return wanted

    def _node(self, index: int, operation: Operation) -> Node:
        call = operation.call
        if call.kind == "placeholder":
            return self._noted(self.graph.placeholder(call.target), operation)
        layer = self._layer(operation) if call.kind == "call_function" else None
        if layer is not None:
            return self._noted(layer, operation)
        args = _sizes_by_inference(call.target, call.args, self.shapes[index])
        values, named = map_values(self._value, args), map_values(self._value, dict(call.kwargs or {}))
        write = self._module_node if call.kind == "call_module" else self._function_node
        return self._noted(write(operation, values, named), operation)

    def _module_node(self, operation: Operation, values: tuple[Any, ...], named: dict[str, Any]) -> Node:
        name = operation.call.target
        if _uses_batch_statistics(self.model.get_submodule(name)):
            return self._batch_statistics_node(name, values[0])
        return self.graph.call_module(self._module_name(name), values, named)

    def _function_node(self, operation: Operation, values: tuple[Any, ...], named: dict[str, Any]) -> Node:
        target = operation.call.target
        if target is replace_items:
            return self._replacement(operation, values)
        if target in FACTORIES and any(isinstance(value, Node) for value in leaves(values)):
            return write_factory(self.graph, target, values, named)
        if target in _SCALED and named.get("alpha", 1) != 1:  # a factor that some frameworks overlook
            second, factor = values[1], named["alpha"]
            if isinstance(second, Node):
                scaled: Any = self._noted(self.graph.call_function(operator.mul, (second, factor)), operation)
            else:
                scaled = second * factor
            return self.graph.call_function(_SCALED[target], (values[0], scaled))
        return self.graph.create_node(operation.call.kind, target, values, named)

    def _noted(self, node: Node, operation: Operation) -> Node:
        self.places[node.name] = operation.place
        return node

    def _replacement(self, operation: Operation, values: tuple[Any, ...]) -> Node:
        shape = self._shape(operation.call.args[0])
        written = None if shape is None else write_replacement(self.graph, values[0], values[1], values[2], shape)
        if written is None:
            raise UntraceableError(
                "Writing into a tensor can be traced for an index of numbers and slices, or a mask and a number, but "
                f"this index is another {operation.place}.",
                module=operation.place.module,
            )
        return written

    def _batch_statistics_node(self, name: str, source: Node) -> Node:
        """Write a BatchNorm that normalizes with the statistics of its batch as the function that it is.

        Frameworks take the module for one with running statistics.
        """
        module: Any = self.model.get_submodule(name)
        weight = None if module.weight is None else self.graph.get_attr(f"{name}.weight")
        bias = None if module.bias is None else self.graph.get_attr(f"{name}.bias")
        given = (source, None, None, weight, bias, True, 0.0, module.eps)
        return self.graph.call_function(functional.batch_norm, given)

    def _module_name(self, name: str) -> str:
        """Return the submodule to call: itself for its first call, a twin for every later one."""
        module = self.model.get_submodule(name)
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
        if name not in self.called:
            self.called.add(name)
            return name
        return self._add_module(name, copy.deepcopy(module))

    def _add_module(self, name: str, module: nn.Module) -> str:
        """Add a submodule under `name`, or under the name with the first free number."""
        free = _free_name(self.model, name)
        parent, _, child = free.rpartition(".")
        self.model.get_submodule(parent).add_module(child, module)
        self.called.add(free)
        return free

    def _layer(self, operation: Operation) -> Node | None:
        call = operation.call
        source = next((value for value in call.args if isinstance(value, Reference)), None)
        if source is None or not self._depends(source):
            return None
        shape = self._shape(source)
        if shape is None or is_batch_dependent((call.args, call.kwargs)):
            return None
        args, kwargs = map_values(self._constant, call.args), map_values(self._constant, dict(call.kwargs or {}))
        if call.args[0] is not source or any(isinstance(value, Reference) for value in leaves((args[1:], kwargs))):
            return None
        layer = layer_of(call.target, args, kwargs, len(shape))
        if layer is None:
            return None
        return self.graph.call_module(self._layer_name(operation, layer), (self._value(source),))

    def _layer_name(self, operation: Operation, layer: nn.Module) -> str:
        """Return the name for a layer that was a function: that of the user's subclass of it, or a new one."""
        owner = operation.place.module
        module = self.model.get_submodule(owner)
        if owner and isinstance(module, type(layer)) and owner not in self.called:
            for name, value in [*module._parameters.items(), *module._buffers.items()]:  # noqa: SLF001
                if name not in layer._parameters and name not in layer._buffers and value is not None:  # noqa: SLF001
                    layer.register_buffer(name, value.detach())
                    self.leftovers.append((owner, name))
            for name, child in module.named_children():
                layer.add_module(name, child)
            parent, _, child_name = owner.rpartition(".")
            self.model.get_submodule(parent).add_module(child_name, layer)
            self.called.add(owner)
            return owner
        prefix = f"{owner}." if owner else ""
        return self._add_module(f"{prefix}{type(layer).__name__.lower()}", _untied(layer))

    def _drop_leftovers(self) -> None:
        """Remove the tensors of a former layer that no node reads: a framework's layer has no place for them."""
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        for owner, name in self.leftovers:
            if f"{owner}.{name}" not in read:
                delattr(self.model.get_submodule(owner), name)

    def _depends(self, reference: Reference) -> bool:
        return self.operations[reference.operation].from_input

    def _shape(self, reference: Reference) -> Any:
        shape = self.shapes[reference.operation]
        for item in reference.item:
            shape = None if shape is None else shape[item]
        return shape

    def _constant(self, value: Any) -> Any:
        """Return the tensor of a constant; anything else, and what depends on the input, as it is."""
        if isinstance(value, Attribute):
            return _attribute(self.model, value.name)
        if isinstance(value, Constant):
            return value.value.clone()
        if isinstance(value, Reference) and not self._depends(value):
            result = self.operations[value.operation].result
            for item in value.item:
                result = None if result is None else result[item]
            return result.clone() if isinstance(result, Tensor) else value  # recorded in inference mode
        return value

    def _value(self, value: Any) -> Any:
        """Return what a node takes as its argument."""
        if isinstance(value, BatchSize):
            return self._batch_size(value)
        if isinstance(value, Attribute):
            return self.graph.get_attr(value.name)
        if isinstance(value, Constant):
            return self._constant_node(value.value)
        if not isinstance(value, Reference):
            return value
        constant = self._constant(value)
        if not isinstance(constant, Tensor):
            return self._item(value)
        if value not in self.items:
            self.items[value] = self._constant_node(constant)
        return self.items[value]

    def _item(self, reference: Reference) -> Node:
        """Return the node of a result, or of the item in a tuple of results."""
        if not reference.item:
            return self._result(reference.operation)
        if reference not in self.items:
            *outer, item = reference.item
            owner = self._item(Reference(reference.operation, tuple(outer)))
            node = self.graph.call_function(operator.getitem, (owner, item))
            self.items[reference] = self._noted(node, self.operations[reference.operation])
        found: Node = self.items[reference]
        return found

    def _result(self, index: int) -> Node:
        """Return the node of an operation; one that no input feeds is written when it is first needed."""
        if index not in self.nodes:
            self.nodes[index] = self._shaped(index, self.operations[index])
        return self.nodes[index]

    def _shaped(self, index: int, operation: Operation) -> Node:
        node = self._node(index, operation)
        shape = self.shapes[index]
        node.meta[SHAPE] = shape if isinstance(shape, tuple) and all(isinstance(size, int) for size in shape) else None
        return node

    def _batch_size(self, size: BatchSize) -> Node:
        if self.batch is None:
            first = next(iter(self.graph.nodes))
            with self.graph.inserting_after(self._last_placeholder()):
                self.batch = self.graph.call_method("size", (first, 0))
        node: Node = self.batch
        if size.factor != 1:
            node = self.graph.call_function(operator.mul, (node, size.factor))
        return node if size.offset == 0 else self.graph.call_function(operator.add, (node, size.offset))

    def _last_placeholder(self) -> Node:
        last: Node
        *_, last = (node for node in self.graph.nodes if node.op == "placeholder")
        return last

    def _constant_node(self, tensor: Tensor) -> Any:
        if tensor.ndim == 0 and not isinstance(tensor, nn.Parameter):
            return tensor.item()
        name = _free_name(self.model, "constant")
        self.model.register_buffer(name, tensor.detach().clone())
        return self.graph.get_attr(name)


def _sizes_by_inference(target: Any, args: tuple[Any, ...], shape: Any) -> tuple[Any, ...]:
    """Let torch infer the batch in the sizes of a reshape, so that no number needs to be computed for it."""
    if target != "reshape" or shape is None or len(args) != 2:  # noqa: PLR2004  (tensor, sizes)
        return args
    following = [index for index, size in enumerate(args[1]) if isinstance(size, BatchSize)]
    if len(following) != 1:
        return args
    sizes = [-1 if index in following else shape[index] for index in range(len(args[1]))]
    return args[0], tuple(sizes)


def _uses_batch_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _free_name(model: nn.Module, name: str) -> str:
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    free, number = child, 2
    while hasattr(owner, free):
        free, number = f"{child}_{number}", number + 1
    return f"{parent}.{free}" if parent else free


def _untied(layer: nn.Module) -> nn.Module:
    for name, value in layer._parameters.items():  # noqa: SLF001
        if value is not None:
            layer._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)  # noqa: SLF001
    return layer


def _attribute(model: nn.Module, name: str) -> Tensor:
    parent, _, child = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(parent), child)
    return value
