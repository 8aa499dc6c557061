"""Runs a network once to find the input of each module and the ends of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from dfq_plugins.inputs import cloned, leaves, moved, run_network
from dfq_plugins.model_state import device_of, hooked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.types import Inputs, Specification

_DOWNSAMPLING = (_ConvNd, _AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_SPATIAL = 3
"""Axes of a feature map with at least one spatial axis: batch, channels, positions."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: its name, the module, its input and the shape of its output."""

    name: str
    module: nn.Module
    entered: Tensor
    left: tuple[int, ...] | None


def plain(value: Any) -> Tensor | None:
    """Return the tensor in a module's argument, including one that a framework wraps in a record, else None."""
    inner = value if isinstance(value, Tensor) else getattr(value, "value", None)
    return inner if isinstance(inner, Tensor) else None


@torch.no_grad()
def record_calls(model: nn.Module, sample: Inputs, spec: Specification | None = None) -> list[Call]:
    """Run `model` once and return the first call of each module, in order; its mode and hooks do not change.

    Args:
        model: the network.
        sample: inputs `(batch, *shape)`.
        spec: says how the network takes several inputs; None means by keywords.
    """
    calls: dict[str, Call] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        entered, left = plain(inputs[0]) if inputs else None, plain(output)
        if entered is not None and name not in calls:
            calls[name] = Call(name, module, entered, None if left is None else tuple(left.shape))

    def hook(name: str) -> Any:
        return lambda module, inputs, output: note(name, module, inputs, output)

    modules = {n: m for n, m in model.named_modules() if n and not isinstance(m, torch.jit.ScriptModule)}
    with hooked(module.register_forward_hook(hook(name)) for name, module in modules.items()):
        run_network(model, moved(cloned(sample), device_of(model)), spec)
    return list(calls.values())


def block_ends(calls: Sequence[Call], sample: Inputs) -> tuple[str, ...]:
    """Return the modules at which the stages of a network end: those that downsample, and the classifier.

    Zhu et al. (2020) compare the inputs of these modules: the features before each downsampling. Modules that read the
    same tensor, such as a block and its shortcut, count once; modules that read the network's input do not count.

    Args:
        calls: the calls of the float network.
        sample: the input that the network was run on, `(batch, *shape)`.
    """
    found: list[Call] = []
    shapes = [tensor.shape[1:] for tensor in leaves(sample)]
    for call in calls:
        is_input = call.entered.shape[1:] in shapes
        if _ends_stage(call) and not is_input and not any(call.entered is other.entered for other in found):
            found.append(call)
    return tuple(call.name for call in found)


def _ends_stage(call: Call) -> bool:
    if isinstance(call.module, nn.Linear):
        return True
    if not isinstance(call.module, _DOWNSAMPLING) or call.left is None or call.entered.ndim < _SPATIAL:
        return False
    return places(call.left) < places(call.entered.shape)


def places(shape: Sequence[int]) -> int:
    """Return the number of spatial positions of a feature map `(batch, channels, *spatial)`.

    >>> places((2, 16, 8, 8))
    64
    """
    places = 1
    for size in shape[2:]:
        places *= size
    return places
