"""Names every operation of a network that FINN has no hardware for, each with a way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from dfq_brevitas.finn.roles import Role, role_of
from dfq_brevitas.grid import OnGrid
from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node

_MEND = "Exchange it in the float network and train that, or leave target=finn out"
_RELU = "FINN turns ReLU and ReLU6 into thresholds, and no other activation: train the network with one of them"
_IMAGES = "FINN takes maps of height and width: write it as the layer for images with a kernel of (k, 1)"
_SCALE_ONLY = (
    "FINN multiplies activations by constants only: leave the gate out, as networks without squeeze-and-excite do"
)
_PADDING = "FINN pads with zeros, in front of convolutions only: let a convolution read what is padded"
_SPATIAL_PADS = 4  # torch lists left, right, top, bottom first, then those of the channels
_WAYS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (
        (
            nn.Sigmoid,
            nn.Tanh,
            nn.Hardtanh,
            nn.Hardswish,
            nn.Hardsigmoid,
            nn.SiLU,
            nn.GELU,
            nn.ELU,
            nn.LeakyReLU,
            nn.PReLU,
        ),
        _RELU,
    ),
    ((nn.Conv1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d), _IMAGES),
    (
        (nn.AvgPool2d, nn.AdaptiveAvgPool2d),
        "an average needs windows of one size that count their padding: choose an output size that divides the map's",
    ),
    ((nn.Upsample,), "FINN upsamples by repeating values: use mode='nearest'"),
    (
        (nn.Conv2d, nn.ConvTranspose2d),
        "FINN's convolutions have one group, or one per channel: split the layer, or use either",
    ),
)
_CALLS = (("mul", _SCALE_ONLY), ("interpolate", "FINN upsamples by repeating values: use mode='nearest'"))
_ACTIVATION_CALLS = (
    "sigmoid",
    "tanh",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "silu",
    "gelu",
    "elu",
    "leaky_relu",
    "clamp",
    "clip",
)


def require_finn_operations(graph: GraphModule) -> None:
    """Raise where an operation has no form in FINN.

    Raises:
        ModelError: names each such module or call, with the way round.
    """
    refused = {_name(graph, node): _way_round(graph, node) for node in graph.graph.nodes if _is_refused(graph, node)}
    if refused:
        listed = "; ".join(f"{name}: {way}" for name, way in refused.items())
        raise ModelError(
            f"With target=finn a network holds only what FINN has hardware for, but this one has {listed}."
        )


def _is_refused(graph: GraphModule, node: Node) -> bool:
    role = role_of(graph, node)
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if role is Role.POOL and isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size not in (1, (1, 1))
    if role is Role.LAYER and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return module.groups not in (1, module.in_channels) or module.padding_mode != "zeros"
    if isinstance(module, OnGrid):
        return module.function is not nn.functional.interpolate and not _is_padding_of_convolutions(graph, node)
    return role is Role.FOREIGN


def _is_padding_of_convolutions(graph: GraphModule, node: Node) -> bool:
    """Tell whether a node pads maps on all sides, for convolutions only: they can pad by themselves."""
    module = graph.get_submodule(str(node.target))
    if not isinstance(module, OnGrid) or module.function is not nn.functional.pad:
        return False
    pads = tuple(module.args[0] if module.args else module.kwargs["pad"])
    readers = [graph.get_submodule(str(user.target)) for user in node.users if user.op == "call_module"]
    return (
        module.kwargs.get("mode", "constant") == "constant"
        and all(amount >= 0 for amount in pads)
        and not any(pads[_SPATIAL_PADS:])
        and len(readers) == len(node.users)
        and all(isinstance(reader, nn.Conv2d) for reader in readers)
    )


def _name(graph: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        kind = module.extra_repr() if isinstance(module, OnGrid) else type(module).__name__
        return f"{node.target} ({kind})"
    return f"{node.name} ({_called(node)})"


def _called(node: Node) -> str:
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def _way_round(graph: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, OnGrid):
            return _PADDING if module.function is nn.functional.pad else _MEND
        return next((way for kinds, way in _WAYS if isinstance(module, kinds)), _MEND)
    name = _called(node)
    if name in _ACTIVATION_CALLS:
        return _RELU
    return next((way for called, way in _CALLS if called == name), _MEND)
