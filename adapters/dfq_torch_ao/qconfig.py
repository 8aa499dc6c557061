"""Translates a recipe and options into torch.ao's QConfigMapping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QConfig,
    QConfigMapping,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)

from dfq_plugins.errors import UsageError
from dfq_torch_ao.engines import reduces_range
from dfq_torch_ao.float_operations import FLOAT_OPERATIONS
from dfq_torch_ao.slopes import SlopeObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.types import Recipe
    from dfq_torch_ao.options import TorchAoOptions

STORAGE_BITS = 8
"""Width of the integers that torch.ao's kernels read and write, regardless of how much of their range is used."""

_LOWEST_BITS = 2
_ACTIVATION_OBSERVERS: dict[str, Any] = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "moving-average-minmax": MovingAverageMinMaxObserver,
}
_TRANSPOSED: tuple[Any, ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)
_FLOAT_WEIGHT: tuple[Any, ...] = (nn.LayerNorm, nn.functional.layer_norm)


def check_recipe(recipe: Recipe) -> None:
    """Reject bit widths that int8 storage cannot hold.

    Raises:
        UsageError: a width is not between 2 and 8 bits.
    """
    for what, bits in (("weights", recipe.weight_bits), ("activations", recipe.activation_bits)):
        if not _LOWEST_BITS <= bits <= STORAGE_BITS:
            raise UsageError(
                f"torch.ao quantizes {what} to 2 to 8 bits (below 8 inside int8 storage), got {bits} in {recipe}. "
                "Choose e.g. w8a8 or w4a8."
            )


def weight_range(bits: int) -> tuple[int, int]:
    """Return the lowest and highest weight integer.

    Eight bits keep torch.ao's -128..127. Below 8 bits, values outside the range are not clipped, so the range must be
    symmetric: the scale is max|w| / highest, which maps the largest weight exactly to the highest integer.

    >>> weight_range(8), weight_range(4)
    ((-128, 127), (-7, 7))
    """
    highest = 2 ** (bits - 1) - 1
    return (-highest - 1 if bits == STORAGE_BITS else -highest), highest


def activation_range(recipe: Recipe, options: TorchAoOptions, engine: str) -> tuple[int, int]:
    """Return the lowest and highest activation integer; 0..127 for 8 bits if the engine needs a reduced range."""
    # Weights below 8 bits cannot overflow the 16-bit sums.
    narrow = recipe.weight_bits == recipe.activation_bits == STORAGE_BITS and reduces_range(options, engine)
    return 0, 2 ** (recipe.activation_bits - narrow) - 1


def activation_observer(recipe: Recipe, options: TorchAoOptions, engine: str) -> Any:
    """Return the constructor for activation observers."""
    lowest, highest = activation_range(recipe, options, engine)
    kind = _ACTIVATION_OBSERVERS[options.activation_observer]
    return kind.with_args(dtype=torch.quint8, quant_min=lowest, quant_max=highest)


def weight_observer(bits: int, *, per_channel: bool) -> Any:
    """Return the constructor for weight observers: symmetric, per output channel or per tensor."""
    lowest, highest = weight_range(bits)
    kind, scheme = (
        (PerChannelMinMaxObserver, torch.per_channel_symmetric)
        if per_channel
        else (MinMaxObserver, torch.per_tensor_symmetric)
    )
    return kind.with_args(dtype=torch.qint8, qscheme=scheme, quant_min=lowest, quant_max=highest)


def training_activation(recipe: Recipe, options: TorchAoOptions, engine: str) -> Any:
    """Return the constructor for activation fake quantizers, which wrap the observers chosen by the options."""
    lowest, highest = activation_range(recipe, options, engine)
    follows = options.training_ranges == "moving-average"
    kind = MovingAverageMinMaxObserver if follows else _ACTIVATION_OBSERVERS[options.activation_observer]
    return FakeQuantize.with_args(observer=kind, dtype=torch.quint8, quant_min=lowest, quant_max=highest)


def new_activation_observer(
    recipe: Recipe, options: TorchAoOptions, engine: str, *, training: bool = False
) -> Callable[[], nn.Module]:
    """Return the constructor for what `prepare_fx` puts behind a layer: an observer, or a fake quantizer to train."""
    make: Callable[[], nn.Module] = (training_activation if training else activation_observer)(recipe, options, engine)
    return make


def training_weight(bits: int, *, per_channel: bool) -> Any:
    """Return the constructor for weight fake quantizers, which recompute their ranges from the weights at each step."""
    lowest, highest = weight_range(bits)
    kind, scheme = (
        (MovingAveragePerChannelMinMaxObserver, torch.per_channel_symmetric)
        if per_channel
        else (MovingAverageMinMaxObserver, torch.per_tensor_symmetric)
    )
    settings = {"dtype": torch.qint8, "qscheme": scheme, "quant_min": lowest, "quant_max": highest}
    return FakeQuantize.with_args(observer=kind, averaging_constant=1.0, **settings)  # 1.0: only the last range counts


def make_qconfig_mapping(
    recipe: Recipe, options: TorchAoOptions, engine: str, *, training: bool = False
) -> QConfigMapping:
    """Return torch.ao's default mapping for `engine` with the recipe's observers: every layer is quantized.

    For training, fake quantizers with observers inside replace the observers.

    Raises:
        UsageError: torch.ao cannot quantize to the recipe's bit widths.
    """
    check_recipe(recipe)
    activation = new_activation_observer(recipe, options, engine, training=training)
    weight_of = training_weight if training else weight_observer
    per_tensor = QConfig(activation=activation, weight=weight_of(recipe.weight_bits, per_channel=False))
    weight = weight_of(recipe.weight_bits, per_channel=options.per_channel)
    default = (get_default_qat_qconfig_mapping if training else get_default_qconfig_mapping)(engine)
    mapping = default.set_global(QConfig(activation=activation, weight=weight))
    for kind in _TRANSPOSED:  # no kernel supports one scale per channel
        mapping.set_object_type(kind, per_tensor)
    for kind in _FLOAT_WEIGHT:
        mapping.set_object_type(kind, QConfig(activation=activation, weight=PlaceholderObserver))
    slope = SlopeObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=2**recipe.weight_bits - 1)
    mapping.set_object_type(nn.PReLU, QConfig(activation=activation, weight=slope))
    if recipe.activation_bits < STORAGE_BITS:
        for kind in FLOAT_OPERATIONS:
            mapping.set_object_type(kind, None)
    return mapping


def match_histogram_levels(prepared: nn.Module) -> None:
    """Set histogram observers to the number of levels in use when they weigh clipping; torch.ao assumes 256."""
    for module in prepared.modules():
        if isinstance(module, HistogramObserver):
            module.dst_nbins = module.quant_max - module.quant_min + 1
