"""Finds the layers that read the network input directly, and sets their range from the known range of its values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.inputs import leaves, moved, random_inputs
from dfq_plugins.model_state import hooked
from dfq_shared.tensorrt.quantizers import quantized_modules
from dfq_shared.tensorrt.ranges import load_activation_range

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import InputSpec, Specification
    from dfq_shared.tensorrt.options import RangeOptions

GRID = 4097
"""Number of values that represent one channel of the network input."""


def layers_on_inputs(model: nn.Module, spec: Specification) -> dict[str, dict[str, bool]]:
    """Run `model` on two random samples and find the quantized modules that see exactly these values.

    A module counts if each of its input values is one of the samples' values or zero, which remains true after padding,
    cropping, reordering and max pooling.

    Returns:
        Name of each such module, with the inputs that it reads, and whether it sees negative values of them.
    """
    parameter = next(model.parameters())
    samples = moved(random_inputs(spec, 2), parameter.device, parameter.dtype)
    tensors = dict(zip(spec.named, leaves(samples), strict=True))
    values = {
        name: torch.cat([tensor.flatten(), tensor.new_zeros(1)]).sort().values for name, tensor in tensors.items()
    }
    found: dict[str, dict[str, bool]] = {}
    others: set[str] = set()

    def record(name: str, inputs: torch.Tensor) -> None:
        # Comparing the first few values avoids the full comparison for nearly every module.
        few, every = inputs.flatten()[:256], inputs.flatten()
        read = (source for source, known in values.items() if _are_among(few, known) and _are_among(every, known))
        source = next(read, None) if inputs.any() else None
        if source is None:
            others.add(name)  # a shared module can also see other tensors, whose range is unknown
        else:
            seen = found.setdefault(name, {})
            seen[source] = seen.get(source, False) or bool(inputs.min() < 0)

    hooks = (
        module.input_quantizer.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs[0]))
        for name, module in quantized_modules(model)
    )
    with torch.no_grad(), hooked(hooks):
        spec.run(model, samples)
    return {name: seen for name, seen in found.items() if name not in others}


def layers_before_weights(model: nn.Module, spec: Specification) -> set[str]:
    """Run `model` and return the quantized modules whose inputs depend on no layer with weights.

    Every such layer returns NaN in this run: where none arrives, only padding, pooling and elementwise operations stand
    between the network's input and the module.
    """
    parameter = next(model.parameters())
    samples = moved(random_inputs(spec, 2), parameter.device, parameter.dtype)
    modules = dict(quantized_modules(model))
    free: set[str] = set()
    spoilt: set[str] = set()

    def look(name: str, inputs: torch.Tensor) -> None:
        (spoilt if inputs.isnan().any() else free).add(name)

    hooks = [
        module.input_quantizer.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        for name, module in modules.items()
    ]
    hooks += [
        module.register_forward_hook(lambda _module, _inputs, output: torch.full_like(output, math.nan))
        for module in modules.values()
        if hasattr(module, "weight_quantizer")
    ]
    with torch.no_grad(), hooked(hooks):
        spec.run(model, samples)
    return free - spoilt


def _are_among(inputs: torch.Tensor, values: torch.Tensor) -> bool:
    """Return whether each of the inputs is one of the sorted values."""
    places = torch.searchsorted(values, inputs.contiguous()).clamp_(max=len(values) - 1)
    return bool((values[places] == inputs).all())


def fix_ranges(model: nn.Module, spec: Specification, found: dict[str, dict[str, bool]], options: RangeOptions) -> None:
    """Choose the ranges of the network's inputs from the spec, where it bounds the values.

    The calibration method sees `known_values` instead of data. Below 8 bits, `mse` clips the ends, which pays off: see
    the table in docs/how-to/pytorch-quantization.md.

    Args:
        model: the prepared model; calibration then skips the quantizers whose range is set.
        spec: the inputs.
        found: the modules that read them, see `layers_on_inputs`.
        options: the calibration method.
    """
    bounded = {name: known_values(one) for name, one in spec.named.items() if one.bounds is not None}
    for name, seen in found.items():
        if not set(seen) <= set(bounded):
            continue
        values = torch.cat(
            [bounded[source] if negative else bounded[source].clamp(min=0) for source, negative in seen.items()]
        )
        module: Any = model.get_submodule(name)
        quantizer = module.input_quantizer
        quantizer._calibrator.collect(values)  # noqa: SLF001  (no public access)
        load_activation_range(quantizer, options, next(model.parameters()).device)
        quantizer._calibrator = None  # noqa: SLF001  (how the framework marks a quantizer that is not calibrated)


def known_values(spec: InputSpec) -> torch.Tensor:
    """Return values that represent the input in the spec: each channel's lie between its bounds and include both.

    Normalized channels have mean 0 and variance 1: they are treated as Gaussian, clipped at the bounds. Others are
    evenly spread.

    >>> from dfq_plugins.types import InputSpec
    >>> values = known_values(InputSpec((1, 8, 8), mean=(0.5,), std=(0.25,), value_range=(0.0, 1.0)))
    >>> values.min().item(), values.max().item(), round(values.abs().median().item(), 2)
    (-2.0, 2.0, 0.67)
    """
    bounds = spec.bounds or ((-1.0,) * spec.channels, (1.0,) * spec.channels)
    quantiles = torch.linspace(0, 1, GRID)  # the ends become infinite as Gaussian values, and are clipped
    return torch.cat(
        [
            low + quantiles * (high - low) if spec.mean is None else torch.special.ndtri(quantiles).clamp(low, high)
            for low, high in zip(*bounds, strict=True)
        ]
    )
