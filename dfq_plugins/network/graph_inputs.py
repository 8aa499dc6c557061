"""The inputs of a traced network: one placeholder each, whatever way the network itself takes them.

FX traces a forward as its signature stands: an optional argument becomes an input, and a dictionary a single one. Here
the inputs that the specification names become placeholders, and all other parameters keep their defaults.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from dfq_plugins.inputs import leaves
from dfq_plugins.network.signature import signature_of
from dfq_plugins.types import SINGLE_INPUT, InputSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from torch import nn

    from dfq_plugins.types import Inputs, Specification


def with_placeholders(model: nn.Module, spec: Specification, whole: Collection[str] = ()) -> nn.Module:
    """Return a graph of the model whose placeholders are the inputs of the specification, in order.

    A model with one input and no other parameter is returned as it is, since FX traces it in the same way.

    Args:
        model: a private copy in eval mode.
        spec: the specification of its inputs.
        whole: names of submodules that are not traced.

    Raises:
        Exception: whatever FX or the forward raises; see `network/trace_errors.py`.
    """
    signature = signature_of(model)
    if isinstance(spec, InputSpec) and (signature is None or signature.plain):
        return model
    graph = _InputTracer(spec, whole, signature.positional[:1] if signature else ()).trace(model)
    traced = fx.GraphModule(model, graph, class_name=type(model).__name__)
    # What no output depends on, such as a head whose result the forward drops, would be quantized but not exported.
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class _InputTracer(fx.Tracer):
    """Traces a network on a placeholder for each input."""

    def __init__(self, spec: Specification, whole: Collection[str], named: tuple[str, ...]) -> None:
        super().__init__()
        self._spec, self._whole = spec, frozenset(whole)
        self._single = next(iter(named), SINGLE_INPUT)  # the parameter's own name, for calls by keyword

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._whole or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        if not is_module or concrete_args is not None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        names = [self._single] if isinstance(self._spec, InputSpec) else list(self._spec.order)
        proxies = [self.create_proxy("placeholder", identifier(name), (), {}) for name in names]
        inputs = proxies[0] if isinstance(self._spec, InputSpec) else dict(zip(names, proxies, strict=True))
        positional, keywords = self._spec.arguments(inputs)

        def run(root: nn.Module) -> Any:
            return root_fn(root, *positional, **keywords)

        return run, [self.root]


def identifier(name: str) -> str:
    """Return the name of an input as a Python identifier.

    >>> identifier("image/left")
    'image_left'
    """
    return re.sub(r"\W", "_", name)


def input_nodes(graph: fx.GraphModule, spec: Specification) -> Iterator[tuple[fx.Node, InputSpec]]:
    """Yield the placeholder of each input with its specification."""
    placeholders = (node for node in graph.graph.nodes if node.op == "placeholder")
    yield from zip(placeholders, spec.named.values(), strict=False)


def take_inputs_as_given(graph: fx.GraphModule, spec: Specification) -> None:
    """Let a graph take its inputs as the network does: in one dictionary, if the specification says so; in place."""
    if isinstance(spec, NetworkSpec) and spec.call == "dictionary":
        graph.graph.set_codegen(_DictionaryCode(spec.order))
        graph.recompile()


def take_inputs_in_order(graph: fx.GraphModule) -> None:
    """Let a graph take its inputs as positional arguments, in place."""
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.recompile()


def in_order(spec: Specification) -> Specification:
    """Return the specification of the same inputs as positional arguments."""
    return spec if isinstance(spec, InputSpec) else replace(spec, call="positional")


def ordered(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Return the tensors of the inputs, in order."""
    return tuple(leaves(inputs))


class _DictionaryCode(fx.graph.CodeGen):
    """Generates a forward that takes one dictionary of tensors."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self._names = names

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **options: Any) -> str:
        variables = [variable.partition(":")[0].partition("=")[0].strip() for variable in free_vars]
        # TorchScript takes an argument without a type for a tensor.
        head = super().gen_fn_def(["inputs : dict[str, torch.Tensor]"], maybe_return_annotation, **options)
        pairs = zip((name for name in variables if name != "self"), self._names, strict=True)
        return head + "".join(f"\n    {variable} = inputs[{name!r}]" for variable, name in pairs)

    def process_inputs(self, *args: Any) -> Any:
        """Return the values of the placeholders."""
        return tuple(args[0][name] for name in self._names)
