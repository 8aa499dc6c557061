"""Max pooling by torch's own kernel inside a compiled step.

On a processor the compiler turns max pooling and its gradient into loops that take ten times as long as torch's kernel
(measured with torch 2.15), so the kernel is called as it is: the compiler sees one operation that it cannot open.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  torch reads the signatures
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfq_plugins.model_state import device_of


@torch.library.custom_op("dfq_plugins::max_pool2d", mutates_args=())
def max_pool2d(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the largest values `(batch, channels, height, width)`, and their places in the inputs."""
    values, places = torch.ops.aten.max_pool2d_with_indices(inputs, kernel, stride, padding, dilation)
    return values, places


@torch.library.custom_op("dfq_plugins::max_pool2d_gradient", mutates_args=())
def max_pool2d_gradient(
    gradient: Tensor,
    inputs: Tensor,
    places: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the gradient of the inputs."""
    like = torch.channels_last if inputs.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    laid_out = gradient.contiguous(memory_format=like)
    pooled: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        laid_out, inputs, kernel, stride, padding, dilation, False, places
    )
    return pooled


def _shapes(inputs: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    values, places = torch.ops.aten.max_pool2d_with_indices(inputs, *settings)
    return values, places


def _gradient_shape(_gradient: Tensor, inputs: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(inputs)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.settings = inputs[1:]


def _backward(ctx: Any, gradient: Tensor, _places: Tensor) -> tuple[Tensor | None, ...]:
    inputs, places = ctx.saved_tensors
    return max_pool2d_gradient(gradient, inputs, places, *ctx.settings), None, None, None, None


max_pool2d.register_fake(_shapes)


max_pool2d_gradient.register_fake(_gradient_shape)


max_pool2d.register_autograd(_backward, setup_context=_remember)


class NativeMaxPool2d(nn.Module):
    """Stands for a `MaxPool2d` layer in a copy of a network that is to be compiled.

    Args:
        layer: a layer that rounds its output's size down, and returns no indices.

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
    """Put a `NativeMaxPool2d` in the place of every layer that it can stand for, in place; return the model.

    A network on a GPU stays as it is: there the compiler's code is the faster one.
    """
    if device_of(model).type != "cpu":
        return model
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is nn.MaxPool2d and name and not module.ceil_mode and not module.return_indices:
            model.set_submodule(name, NativeMaxPool2d(module))
    return model


class FrozenNorm(nn.Module):
    """Stands for a BatchNorm layer in eval mode; keeps its statistics where hooks look for them.

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
        """Return the normalized inputs `(batch, channels, *spatial)`, in their type."""
        if not torch.compiler.is_compiling():  # the library's kernel takes one pass, these operations several
            mean, var = self.running_mean, self.running_var
            return nn.functional.batch_norm(inputs, mean, var, self.weight, self.bias, eps=self.eps)
        view = (1, -1) + (1,) * (inputs.ndim - 2)
        return torch.addcmul(self.shift.view(view), inputs.float(), self.scale.view(view)).to(inputs.dtype)


def freeze_norms(model: nn.Module) -> nn.Module:
    """Put a `FrozenNorm` in the place of every BatchNorm layer that stores statistics, in place; return the model."""
    made: dict[_BatchNorm, FrozenNorm] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, _BatchNorm) and module.running_mean is not None and name:
            made.setdefault(module, FrozenNorm(module))
            model.set_submodule(name, made[module])
    return model
