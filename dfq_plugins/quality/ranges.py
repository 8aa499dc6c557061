"""Activation ranges after each BatchNorm, compared with the ranges that its parameters imply.

In training, channel `c` after a BatchNorm layer is distributed as `N(beta_c, gamma_c^2)`, by construction of the
layer. A calibrator that sees the same range chooses the same scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.model_state import ForwardHooks
from dfq_plugins.statistics.batch_norm import EPS, statistics_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

QUANTILE = 0.99
"""Share of absolute activations inside a range. In the tails, activations of real data are not Gaussian: on real data,
the 99.9% range is a sixth wider than expected, the 99% range a tenth (ResNet-20, docs/quality.md)."""

OCTAVES = (-20, 20)
BINS_PER_OCTAVE = 64
"""The histogram's resolution: quantiles are accurate to 1.1 percent."""

BISECTIONS = 60


def gaussian_mixture_range(mean: Tensor, deviation: Tensor, share: float = QUANTILE) -> float:
    """Return the `r` for which the share of `|x| <= r` is `share`, over channels `x ~ N(mean, deviation^2)`.

    Args:
        mean: mean of each channel, shape `(channels,)`.
        deviation: standard deviation of each channel; the sign does not matter.
        share: between 0 and 1.

    >>> round(gaussian_mixture_range(torch.zeros(4), torch.ones(4), 0.95), 3)
    1.96
    """
    center, width = mean.double(), deviation.double().abs().clamp_min(1e-12)
    low, high = 0.0, float((center.abs() + 40 * width).max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = torch.special.ndtr((middle - center) / width) - torch.special.ndtr((-middle - center) / width)
        low, high = (middle, high) if float(inside.mean()) < share else (low, middle)
    return high


def expected_ranges(model: nn.Module, names: Collection[str]) -> dict[str, float]:
    """Return the output range of each named BatchNorm layer implied by its parameters."""
    return {name: gaussian_mixture_range(*_output_gaussian(layer)) for name, layer in _layers(model, names).items()}


def _layers(model: nn.Module, names: Collection[str]) -> Mapping[str, nn.Module]:
    return statistics_layers(model, names)


def _output_gaussian(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel after the layer: the layer's shift and scale."""
    mean: Any = layer.running_mean
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    return (
        torch.zeros_like(mean) if bias is None else bias.detach(),
        torch.ones_like(mean) if weight is None else weight.detach(),
    )


class RangeHooks(ForwardHooks):
    """Histograms the absolute values after each BatchNorm while the context is open.

    The values are computed from the layer's input, so a layer that does more, such as apply an activation, is measured
    after its BatchNorm part.

    Args:
        model: the network; hooks are attached to it while the context is open.
        names: the layers to observe.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        self._layers = _layers(model, names)
        self._counts: dict[str, Tensor] = {}

    def attach(self) -> Iterator[RemovableHandle]:
        """Register a forward pre-hook on each layer."""
        for name, layer in self._layers.items():
            yield layer.register_forward_pre_hook(self._observer(name), with_kwargs=True)

    def _observer(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            values = next(iter((*arguments, *keywords.values())))
            counts = width_histogram(batch_norm_output(layer, values))
            self._counts[name] = self._counts[name] + counts if name in self._counts else counts

        return observe

    def ranges(self, share: float = QUANTILE) -> dict[str, float]:
        """Return for each layer the range that holds `share` of the absolute values seen so far."""
        return {name: histogram_quantile(counts, share) for name, counts in self._counts.items()}


def batch_norm_output(layer: nn.Module, values: Tensor) -> Tensor:
    """Return `(values - running_mean) / sqrt(running_var + eps) * weight + bias`, per channel of axis 1."""
    mean: Any = layer.running_mean
    var: Any = layer.running_var
    shift, scale = _output_gaussian(layer)
    factor = scale * (var + float(getattr(layer, "eps", EPS))).rsqrt()
    view = (1, -1) + (1,) * (values.ndim - 2)
    output: Tensor = values.float() * factor.view(view) + (shift - mean * factor).view(view)
    return output


def width_histogram(values: Tensor) -> Tensor:
    """Count absolute values in logarithmic bins from `2**-20` to `2**20`; values outside count in the edge bins."""
    low, high = OCTAVES
    octaves = values.abs().log2().clamp_(low, high)
    return torch.histc(octaves, bins=(high - low) * BINS_PER_OCTAVE, min=low, max=high).double().cpu()


def histogram_quantile(counts: Tensor, share: float) -> float:
    """Return the upper edge of the bin that contains the quantile.

    >>> round(histogram_quantile(width_histogram(torch.full((100,), 3.0)), 0.5), 1)
    3.0
    """
    reached = torch.searchsorted(counts.cumsum(0), share * counts.sum())
    place = min(int(reached), len(counts) - 1) + 1
    return float(2.0 ** (OCTAVES[0] + place / BINS_PER_OCTAVE))
