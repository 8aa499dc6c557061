"""Layers written as functions, with weights that do not depend on the input, become modules, which frameworks quantize.

A subclass of a convolution that pads by itself, a convolution with standardized weights, a BatchNorm with an activation
in its forward: each calls a function of torch with its own tensors.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = dict[str, Any]

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}

_TENSORS = frozenset({"weight", "bias", "running_mean", "running_var"})


def layer_of(function: Any, args: tuple[Any, ...], kwargs: Arguments, axes: int) -> nn.Module | None:
    """Return the module that computes a function of torch, or None where there is none.

    Args:
        function: the function, in its canonical spelling.
        args: its arguments: constant tensors as tensors, everything else than numbers as it is.
        kwargs: its keyword arguments.
        axes: number of axes of its input, the batch included.
    """
    known = _LAYERS.get(function)
    if known is None:
        return None
    parameters, build = known
    if len(args) > len(parameters):
        return None
    given = {**dict(zip(parameters, args, strict=False)), **kwargs}
    given.pop("input", None)
    if not given.keys() <= set(parameters) or not _are_constant(given):
        return None
    return build(given, axes)


def _are_constant(given: Arguments) -> bool:
    tensors = all(isinstance(given.get(name), (Tensor, type(None))) for name in _TENSORS)
    return tensors and not any(isinstance(value, Tensor) for name, value in given.items() if name not in _TENSORS)


def _convolution(kind: Callable[..., nn.Module], *, transposed: bool) -> Callable[[Arguments, int], nn.Module | None]:
    def build(given: Arguments, axes: int) -> nn.Module | None:
        weight = given["weight"]
        if weight is None or axes != weight.ndim:  # without a batch axis
            return None
        groups = given.get("groups", 1)
        ends = (
            (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
        )
        options = {name: given[name] for name in ("stride", "padding", "output_padding", "dilation") if name in given}
        with torch.device("meta"):
            layer = kind(*ends, tuple(weight.shape[2:]), groups=groups, bias=given.get("bias") is not None, **options)
        return _with_tensors(layer, given)

    return build


def _linear(given: Arguments, _axes: int) -> nn.Module | None:
    weight = given["weight"]
    if weight is None or weight.ndim != 2:  # noqa: PLR2004  (outputs, inputs)
        return None
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=given.get("bias") is not None)
    return _with_tensors(layer, given)


def _product(given: Arguments, axes: int) -> nn.Module | None:
    weight = given["weight"]
    if weight is None or weight.ndim != 2 or axes < 2:  # noqa: PLR2004  (inputs, outputs)
        return None
    return _linear({"weight": weight.detach().t().contiguous()}, axes)


def _batch_norm(given: Arguments, axes: int) -> nn.Module | None:
    if given.get("training") or given.get("running_mean") is None or given.get("running_var") is None:
        return None
    kind = _BATCH_NORMS.get(axes)
    if kind is None:
        return None
    with torch.device("meta"):
        empty = kind(len(given["running_mean"]), eps=given.get("eps", 1e-5), momentum=given.get("momentum", 0.1))
    ones = torch.ones_like(given["running_mean"])
    affine = {"weight": ones, "bias": torch.zeros_like(ones)}
    layer = _with_tensors(empty, affine | {name: value for name, value in given.items() if value is not None})
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=ones.device)
    return layer


def _prelu(given: Arguments, _axes: int) -> nn.Module | None:
    weight = given["weight"]
    if weight is None:
        return None
    with torch.device("meta"):
        layer = nn.PReLU(weight.numel())
    return _with_tensors(layer, {"weight": weight.reshape(-1)})


def _with_tensors(layer: nn.Module, given: Arguments) -> nn.Module:
    """Give the tensors of a function call to a module that was made without memory."""
    for name, value in given.items():
        if name not in _TENSORS or value is None:
            continue
        if name in layer._buffers:  # noqa: SLF001  a public way to ask does not exist
            setattr(layer, name, value.detach())
        else:
            parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach(), requires_grad=False)
            setattr(layer, name, parameter)
    return layer.eval()


_LAYERS: dict[Any, tuple[tuple[str, ...], Callable[[Arguments, int], nn.Module | None]]] = {
    torch.conv1d: (_CONVOLUTION, _convolution(nn.Conv1d, transposed=False)),
    torch.conv2d: (_CONVOLUTION, _convolution(nn.Conv2d, transposed=False)),
    torch.conv3d: (_CONVOLUTION, _convolution(nn.Conv3d, transposed=False)),
    torch.conv_transpose1d: (_TRANSPOSED, _convolution(nn.ConvTranspose1d, transposed=True)),
    torch.conv_transpose2d: (_TRANSPOSED, _convolution(nn.ConvTranspose2d, transposed=True)),
    torch.conv_transpose3d: (_TRANSPOSED, _convolution(nn.ConvTranspose3d, transposed=True)),
    functional.linear: (("input", "weight", "bias"), _linear),
    operator.matmul: (("input", "weight"), _product),
    functional.batch_norm: (_BATCH_NORM, _batch_norm),
    functional.prelu: (("input", "weight"), _prelu),
}
