"""The inputs of a traced network: one placeholder each, whatever way the network itself takes them.

The inputs that the specification names are placeholders, in its order, and all other parameters keep their defaults.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import fx

from dfq_plugins.inputs import leaves
from dfq_plugins.network.signature import signature_of
from dfq_plugins.types import SINGLE_INPUT, InputSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from dfq_plugins.types import Inputs, Specification


def placeholder_names(spec: Specification, model: nn.Module) -> list[str]:
    """Return a Python identifier for each input of the specification, in order.

    A single input has the name of the parameter of `forward`, so that calls by keyword still work.

    >>> from torch import nn
    >>> placeholder_names(InputSpec((4,)), nn.Linear(4, 1))
    ['input']
    """
    if isinstance(spec, InputSpec):
        signature = signature_of(model)
        return [next(iter(signature.positional), SINGLE_INPUT) if signature else SINGLE_INPUT]
    names: list[str] = []
    for name in spec.order:
        free = identifier(name)
        while free in names:
            free += "_"
        names.append(free)
    return names


def identifier(name: str) -> str:
    """Return the name of an input as a Python identifier.

    >>> identifier("image/left"), identifier("from")
    ('image_left', 'from_')
    """
    word = re.sub(r"\W", "_", name)
    return f"{word}_" if keyword.iskeyword(word) else word


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
