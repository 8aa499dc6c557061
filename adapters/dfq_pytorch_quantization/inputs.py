"""Finds the layers that the network input itself feeds, and sets their range from the known range of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import UsageError
from dfq_pytorch_quantization.ranges import load_activation_range
from dfq_pytorch_quantization.swap import quantized_modules

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import InputSpec
    from dfq_pytorch_quantization.options import PytorchQuantizationOptions

GRID = 4097
"""Values that stand for the known range of one channel of the network input."""


def layers_on_input(model: nn.Module, spec: InputSpec) -> dict[str, bool]:
    """Run `model` on two random samples and find the quantized modules that see these very values.

    A module does, if each value it gets is one of the samples' or zero: padding, cropping, reordering and pooling of
    maxima keep that so.

    Returns:
        name of each such module, with whether it sees negative values.

    Raises:
        UsageError: the model does not take inputs of the shape of the spec.
    """
    parameter = next(model.parameters())
    samples = random_inputs(spec, count=2).to(parameter.device, parameter.dtype)
    values = torch.cat([samples.flatten(), samples.new_zeros(1)])
    found: dict[str, bool] = {}

    def look(name: str, inputs: torch.Tensor) -> None:
        few = inputs.flatten()[:256]  # spares the whole comparison for nearly every module
        if inputs.any() and torch.isin(few, values).all() and torch.isin(inputs, values).all():
            found[name] = bool(inputs.min() < 0)

    _run_with_hooks(model, samples, look)
    return found


def random_inputs(spec: InputSpec, count: int = 32) -> torch.Tensor:
    """Return the same uniform samples each time, `(count, *shape)`, each channel in its range (-1 to 1 if unknown)."""
    rng = torch.Generator().manual_seed(0)
    samples = torch.rand((count, *spec.shape), generator=rng)
    per_channel = (1, spec.channels, *(1,) * (len(spec.shape) - 1))
    low, high = (
        torch.tensor(edge).view(per_channel) for edge in spec.bounds or ([-1.0] * spec.channels, [1.0] * spec.channels)
    )
    return samples * (high - low) + low


def _run_with_hooks(model: nn.Module, samples: torch.Tensor, look: Any) -> None:
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        for name, module in quantized_modules(model)
    ]
    try:
        with torch.no_grad():
            model(samples)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UsageError(
            f"The model does not take a batch of shape {tuple(samples.shape)}: {error}. "
            "Give the shape of one sample in the InputSpec, channels first."
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def fix_ranges(model: nn.Module, spec: InputSpec, found: dict[str, bool], options: PytorchQuantizationOptions) -> None:
    """Choose the ranges on the network input from the range of its values alone, where the spec knows it.

    The calibration method sees each channel's values spread evenly over their range. Below 8 bits, `mse` cuts a little
    off the ends, which pays: see the table in docs/how-to/pytorch-quantization.md.

    Args:
        model: the prepared model; calibration then skips the quantizers whose range is set.
        spec: the input.
        found: the modules on the network input, with whether each sees negative values.
        options: the calibration method.
    """
    if spec.bounds is None:
        return
    values = torch.cat([torch.linspace(low, high, GRID) for low, high in zip(*spec.bounds, strict=True)])
    for name, sees_negative in found.items():
        module: Any = model.get_submodule(name)
        quantizer = module.input_quantizer
        quantizer._calibrator.collect(values if sees_negative else values.clamp(min=0))  # noqa: SLF001  (no public access)
        load_activation_range(quantizer, options, next(model.parameters()).device)
        quantizer._calibrator = None  # noqa: SLF001  (the framework's own mark of a quantizer that is not calibrated)
