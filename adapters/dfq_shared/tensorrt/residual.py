"""Quantizes the shortcut of each residual addition, as NVIDIA recommends for TensorRT.

If a shortcut is quantized, TensorRT fuses the addition into the int8 convolution; otherwise the convolution writes its
output in float. Only the shortcut gets a quantizer, never the output of the convolution.
"""

from __future__ import annotations

import copy
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import modules
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from dfq_plugins.inputs import cloned, run_network
from dfq_shared.tensorrt.quantizers import is_quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfq_plugins.types import Inputs, Specification

RESIDUAL_QUANTIZER = "residual_quantizer"
"""Name of the quantizer in its block, as in NVIDIA's quantized ResNet."""

RESIDUAL_BITS = 8
"""Width of the shortcut with any recipe: TensorRT adds in int8, so narrower levels would only cost accuracy."""

ADDITIONS = frozenset({operator.add, operator.iadd, torch.add})
ADDING_METHODS = frozenset({"add", "add_", "__add__", "__iadd__"})

PASSED = (modules.batchnorm._BatchNorm, modules.Identity, modules.dropout._DropoutNd)  # noqa: SLF001  (torch has no public common base)
"""Modules between a convolution and an addition that TensorRT folds into the convolution, or that do nothing there."""

PASSED_NAMES = frozenset({"StochasticDepth", "DropPath"})
"""Class names of such modules in torchvision and timm."""


class ResidualQuantizer(nn.Module):
    """A standalone quantizer of the framework, with the attributes of a quantized module."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self._input_quantizer = quantizer

    @property
    def input_quantizer(self) -> nn.Module:
        """The framework's quantizer."""
        return self._input_quantizer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the fake-quantized inputs."""
        quantized: torch.Tensor = self._input_quantizer(inputs)
        return quantized


def add_residual_quantizers(
    model: nn.Module, new_quantizer: Callable[[], nn.Module], sample: Inputs, spec: Specification | None = None
) -> nn.Module:
    """Quantize the shortcut of every addition to the output of a quantized convolution.

    A module whose forward contains such an addition becomes an `fx.GraphModule` with the same class name and
    attributes. A module whose forward cannot be traced is left as it is.

    Args:
        model: the model with the framework's modules, disabled; not changed.
        new_quantizer: makes one of the framework's quantizers, with `RESIDUAL_BITS`, switched off.
        sample: inputs `(batch, *shape)` on which the result must compute exactly what `model` does.
        spec: says how the model takes several inputs; None means by keywords.

    Returns:
        A copy with the quantizers, disabled; `model` itself if it has no such addition, or if the traced modules do not
        compute the same, e.g. because a forward depends on the type of its input.
    """
    candidate = _replaced(copy.deepcopy(model), new_quantizer)
    if not any(isinstance(module, ResidualQuantizer) for module in candidate.modules()):
        return model
    try:
        same = _computes_the_same(model, candidate, sample, spec)
    except Exception:  # noqa: BLE001  (a traced forward raises whatever it likes)
        return model
    return candidate if same else model


@torch.no_grad()
def _computes_the_same(
    model: nn.Module, candidate: nn.Module, sample: Inputs, spec: Specification | None = None
) -> bool:
    outputs = (run_network(network, cloned(sample), spec) for network in (model, candidate))
    expected, found = (pytree.tree_leaves(output) for output in outputs)
    return len(expected) == len(found) and all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else True
        for one, other in zip(expected, found, strict=True)
    )


def _replaced(model: nn.Module, new_quantizer: Callable[[], nn.Module]) -> nn.Module:
    replaced: dict[int, nn.Module] = {}
    for parent in reversed(list(model.modules())):  # a block is rebuilt with the blocks inside it
        for name, child in list(parent._modules.items()):  # noqa: SLF001  (named_children() hides a child's second name)
            if child is None:
                continue
            if id(child) not in replaced:
                replaced[id(child)] = _with_quantizers(child, new_quantizer)
            parent._modules[name] = replaced[id(child)]  # noqa: SLF001  (setattr fails on names such as "0.conv")
    return _with_quantizers(model, new_quantizer)


class _OwnForward(fx.Tracer):
    """Traces the forward of one module, treating each of its children as a leaf."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


def _with_quantizers(module: nn.Module, new_quantizer: Callable[[], nn.Module]) -> nn.Module:
    if not any(True for _ in module.children()) or _is_plain(module):
        return module
    try:
        graph = _OwnForward().trace(copy.copy(module))  # a forward that stores a tensor stores it on the copy
    except Exception:  # noqa: BLE001  (a forward that branches, loops or unpacks raises whatever it likes)
        return module
    quantizers: dict[str, nn.Module] = {}
    for addition, shortcut in list(_shortcuts(graph, module)):
        name = f"{RESIDUAL_QUANTIZER}_{len(quantizers)}" if quantizers else RESIDUAL_QUANTIZER
        quantizers[name] = ResidualQuantizer(new_quantizer())
        with graph.inserting_before(addition):
            quantized = graph.create_node("call_module", name, (shortcut,))
        addition.replace_input_with(shortcut, quantized)
    return _rebuilt(module, graph, quantizers) if quantizers else module


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module only calls its children in turn, or is one of the framework's."""
    return type(module).forward is nn.Sequential.forward or hasattr(module, "input_quantizer")


def _rebuilt(module: nn.Module, graph: fx.Graph, quantizers: dict[str, nn.Module]) -> nn.Module:
    """Return a module that computes the graph and otherwise has the same attributes as `module`."""
    holder = nn.Module()
    vars(holder).update({key: vars(module)[key] for key in ("_parameters", "_buffers")})
    vars(holder)["_modules"] = {**vars(module)["_modules"], **quantizers}
    built = fx.GraphModule(holder, graph, class_name=type(module).__name__)
    of_modules = set(vars(nn.Module()))
    kept = {key: value for key, value in vars(module).items() if key in of_modules or key not in vars(built)}
    kept.pop("forward", None)  # a forward set on the instance was traced already
    vars(built).update({**kept, "_modules": vars(holder)["_modules"]})
    return built


def _shortcuts(graph: fx.Graph, module: nn.Module) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield each addition to a convolution's output, with the input that is the shortcut."""
    lengths: dict[fx.Node, int] = {}
    for node in graph.nodes:
        steps = len(list(module.get_submodule(str(node.target)).modules())) if node.op == "call_module" else 1
        lengths[node] = steps + max((lengths[source] for source in node.all_input_nodes), default=0)
        if not _adds(node):
            continue
        first, second = node.args[:2]
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
            continue
        onto = [_is_convolved(operand, module) for operand in (first, second)]
        if any(onto) and not any(_is_quantizer(operand, module) for operand in (first, second)):
            # If both are convolved, the shortcut is the shorter path: the projection.
            shorter = min((first, second), key=lengths.__getitem__)
            yield node, shorter if all(onto) else (second if onto[0] else first)


def _adds(node: fx.Node) -> bool:
    added = (node.op == "call_function" and node.target in ADDITIONS) or (
        node.op == "call_method" and node.target in ADDING_METHODS
    )
    return added and len(node.args) >= 2 and not node.kwargs  # noqa: PLR2004  (two operands)


def _is_convolved(node: fx.Node, parent: nn.Module) -> bool:
    """Return whether a node is the output of a quantized convolution, including what TensorRT folds into it."""
    while node.op == "call_module":
        module: Any = parent.get_submodule(str(node.target))
        while type(module).forward is nn.Sequential.forward:
            module = next((part for part in reversed(list(module)) if not _is_passed(part)), nn.Identity())
        if isinstance(module, _ConvNd) and is_quantized(module):
            return True
        if not _is_passed(module) or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        node = node.args[0]
    return False


def _is_passed(module: nn.Module) -> bool:
    return isinstance(module, PASSED) or type(module).__name__ in PASSED_NAMES


def _is_quantizer(node: fx.Node, parent: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(parent.get_submodule(str(node.target)), ResidualQuantizer)
