"""Average pooling as FINN supports it: over the whole map, or as a depthwise convolution with constant weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.finn.modules import averaging

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule

    Pair = tuple[int, int]
    Shape = tuple[int, ...]

_GLOBAL = (1, 1)


def replace_pools(graph: GraphModule, shapes: dict[str, Shape]) -> None:
    """Replace the average poolings of a float network, in place; unsupported ones are left as they are.

    Args:
        graph: a float network.
        shapes: input shape of each module, `(batch, channels, height, width)`, by module name.
    """
    for name, module in list(graph.named_modules()):
        if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)) and name in shapes:
            channels, *size = shapes[name][-3:]
            new = _replacement(module, channels, (size[0], size[1]))
            if new is not None:
                graph.set_submodule(name, new)


def _replacement(module: nn.Module, channels: int, size: Pair) -> nn.Module | None:
    window = _adaptive_window(module, size) if isinstance(module, nn.AdaptiveAvgPool2d) else _window(module)
    if window is None:
        return None
    kernel, stride, padding = window
    if padding == (0, 0) and kernel == size:
        return nn.AdaptiveAvgPool2d(1)
    if kernel == _GLOBAL and stride == _GLOBAL:
        return nn.Identity()
    return averaging(channels, kernel, stride, padding)


def _adaptive_window(module: nn.AdaptiveAvgPool2d, size: Pair) -> tuple[Pair, Pair, Pair] | None:
    """Return kernel, stride and padding if every output averages the same number of values, otherwise None."""
    wanted = _pair(module.output_size)
    output = (wanted[0] or size[0], wanted[1] or size[1])
    if size[0] % output[0] or size[1] % output[1]:
        return None
    kernel = (size[0] // output[0], size[1] // output[1])
    return kernel, kernel, (0, 0)


def _window(module: Any) -> tuple[Pair, Pair, Pair] | None:
    """Return kernel, stride and padding if every output is divided by the same count, otherwise None."""
    padding = _pair(module.padding)
    counted = padding == (0, 0) or module.count_include_pad
    if module.ceil_mode or module.divisor_override is not None or not counted:
        return None
    return _pair(module.kernel_size), _pair(module.stride), padding


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
