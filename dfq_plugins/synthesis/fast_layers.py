"""Max pooling with torch's own kernel in a compiled step, and BatchNorm layers frozen for compilation.

On a CPU the compiler turns max pooling and its gradient into loops that take ten times as long as torch's kernel
(measured with torch 2.15). The kernel is therefore called through a custom operator, which is opaque to the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  torch inspects the signatures
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfq_plugins.model_state import device_of
from dfq_plugins.network.layers import computes_as


@torch.library.custom_op("dfq_plugins::max_pool2d", mutates_args=())
def max_pool2d(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the largest values `(batch, channels, height, width)` and their positions in the inputs."""
    values, positions = torch.ops.aten.max_pool2d_with_indices(inputs, kernel, stride, padding, dilation)
    return values, positions


@torch.library.custom_op("dfq_plugins::max_pool2d_gradient", mutates_args=())
def max_pool2d_gradient(
    gradient: Tensor,
    inputs: Tensor,
    positions: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the gradient with respect to the inputs."""
    like = torch.channels_last if inputs.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    laid_out = gradient.contiguous(memory_format=like)
    pooled: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        laid_out, inputs, kernel, stride, padding, dilation, False, positions
    )
    return pooled


def _fake_max_pool2d(inputs: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    values, positions = torch.ops.aten.max_pool2d_with_indices(inputs, *settings)
    return values, positions


def _fake_gradient(_gradient: Tensor, inputs: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(inputs)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.settings = inputs[1:]


def _backward(ctx: Any, gradient: Tensor, _positions: Tensor) -> tuple[Tensor | None, ...]:
    inputs, positions = ctx.saved_tensors
    return max_pool2d_gradient(gradient, inputs, positions, *ctx.settings), None, None, None, None


max_pool2d.register_fake(_fake_max_pool2d)


max_pool2d_gradient.register_fake(_fake_gradient)


max_pool2d.register_autograd(_backward, setup_context=_save_for_backward)


class NativeMaxPool2d(nn.Module):
    """Replaces a `MaxPool2d` layer in a copy of a network that is compiled.

    Args:
        layer: a layer that rounds its output size down and does not return indices.

    >>> layer = nn.MaxPool2d(2)
    >>> values = torch.arange(16.0).view(1, 1, 4, 4)
    >>> torch.equal(NativeMaxPool2d(layer)(values), layer(values))
    True
    """

    def __init__(self, layer: nn.MaxPool2d) -> None:
        super().__init__()
        self.layer = layer
        shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        self.kernel, self.stride, self.padding, self.dilation = (_pair(value) for value in shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the largest values of the inputs `(batch, channels, height, width)`."""
        pooled: Tensor
        if torch.compiler.is_compiling():
            pooled, _ = max_pool2d(inputs, self.kernel, self.stride, self.padding, self.dilation)
        else:
            pooled = self.layer(inputs)
        return pooled


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def native_pooling(model: nn.Module) -> nn.Module:
    """Replace every supported `MaxPool2d` layer by a `NativeMaxPool2d`, in place; return the model.

    A network on a GPU is not changed: there the compiler's code is faster.
    """
    if device_of(model).type != "cpu":
        return model
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and computes_as(module, nn.MaxPool2d) and not module.ceil_mode and not module.return_indices:
            model.set_submodule(name, NativeMaxPool2d(module))
    return model


class FrozenNorm(nn.Module):
    """Replaces a BatchNorm layer in eval mode; keeps its statistics in the attributes that hooks read.

    Args:
        layer: the layer, which must store running statistics.

    >>> layer = nn.BatchNorm1d(3).eval()
    >>> values = torch.tensor([[1.0, -2.0, 3.0]])
    >>> torch.equal(FrozenNorm(layer)(values), layer(values))
    True
    """

    running_mean: Tensor
    running_var: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        mean, var = (value.detach().clone() for value in (layer.running_mean, layer.running_var) if value is not None)
        self.eps = layer.eps
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        root = (var + layer.eps).rsqrt()
        scale = root if layer.weight is None else layer.weight * root
        shift = -mean * scale if layer.bias is None else layer.bias - mean * scale
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("scale", scale.detach())
        self.register_buffer("shift", shift.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalized inputs `(batch, channels, *spatial)` in the inputs' dtype."""
        if not torch.compiler.is_compiling():  # the library's kernel takes one pass, the operations below several
            mean, var = self.running_mean, self.running_var
            return nn.functional.batch_norm(inputs, mean, var, self.weight, self.bias, eps=self.eps)
        view = (1, -1) + (1,) * (inputs.ndim - 2)
        return torch.addcmul(self.shift.view(view), inputs.float(), self.scale.view(view)).to(inputs.dtype)


def freeze_norms(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm layer that stores statistics by a `FrozenNorm`, in place; return the model.

    Layers with their own forward pass stay, such as BatchNorm with an activation.
    """
    made: dict[_BatchNorm, FrozenNorm] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and _freezable(module):
            made.setdefault(module, FrozenNorm(module))
            model.set_submodule(name, made[module])
    return model


def _freezable(module: nn.Module) -> TypeGuard[_BatchNorm]:
    as_torch = computes_as(module, _BatchNorm, nn.SyncBatchNorm)
    return as_torch and module.running_mean is not None and not module.training
