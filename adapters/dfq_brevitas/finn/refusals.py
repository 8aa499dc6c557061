"""Names every operation of a network that FINN has no hardware for, with a workaround for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from dfq_brevitas.finn.roles import Role, role_of
from dfq_brevitas.grid import OnGrid
from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node

_REPLACE = "Replace it in the float network and train that, or leave target=finn out"
_RELU = "FINN turns ReLU and ReLU6 into thresholds, but no other activation: train the network with one of them"
_IMAGES = "FINN needs maps with height and width: use the two-dimensional layer with a kernel of (k, 1)"
_SCALE_ONLY = (
    "FINN multiplies activations only by constants: leave the gate out, as in networks without squeeze-and-excite"
)
_PADDING = "FINN only pads with zeros, in front of convolutions: let a convolution read the padded map"
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
        "an average needs windows of one size that count their padding: use an output size that divides the map size",
    ),
    ((nn.Upsample,), "FINN upsamples by repeating values: use mode='nearest'"),
    (
        (nn.Conv2d, nn.ConvTranspose2d),
        "FINN's convolutions have one group or one group per channel: use either, or split the layer",
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
    """Reject operations that FINN does not support.

    Raises:
        ModelError: FINN has no hardware for a module or call; the message names each, with a workaround.
    """
    refused = {_name(graph, node): _workaround(graph, node) for node in graph.graph.nodes if _is_refused(graph, node)}
    if refused:
        listed = "; ".join(f"{name}: {way}" for name, way in refused.items())
        raise ModelError(
            f"With target=finn, a network must contain only operations that FINN has hardware for, but this one has "
            f"{listed}."
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
    """Return whether a node pads maps only for convolutions, which can do the padding themselves."""
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


def _workaround(graph: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, OnGrid):
            return _PADDING if module.function is nn.functional.pad else _REPLACE
        return next((way for kinds, way in _WAYS if isinstance(module, kinds)), _REPLACE)
    name = _called(node)
    if name in _ACTIVATION_CALLS:
        return _RELU
    return next((way for called, way in _CALLS if called == name), _REPLACE)
