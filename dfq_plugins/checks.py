"""What a model must be for its data to be synthesised, and what can be read off it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.model_state import device_of
from dfq_plugins.statistics import statistics_layers
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from dfq_plugins.registry import Registry

CANDIDATE_SIZES = (8, 16, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384)
"""Square image sizes tried where the network may accept only one."""

INSTEAD = "Use the generator 'gaussian' or 'inception', which need no BatchNorm, or give real samples."


def check_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinite parameters or buffers.

    Raises:
        ModelError: names the first few tensors that are not finite.
    """
    wrong = [
        name
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if wrong:
        raise ModelError(
            f"Weights and statistics must be finite, but NaN or infinity is in {wrong[:5]}. Load a sound checkpoint."
        )


def require_batch_norm(model: nn.Module) -> None:
    """Refuse a model without trained BatchNorm statistics: there is nothing to invert.

    Raises:
        ModelError: no BatchNorm, folded BatchNorm, or statistics that were never trained or are not valid.
    """
    layers = statistics_layers(model)
    if not layers:
        raise ModelError(_no_batch_norm(model))
    if all(_untrained(layer) for layer in layers.values()):
        raise ModelError(
            f"All {len(layers)} BatchNorm layers still hold their initial statistics (mean 0, variance 1): the model "
            f"was never trained, or its weights were not loaded. Load trained weights. {INSTEAD}"
        )
    negative = [name for name, layer in layers.items() if float(layer.running_var.min()) < 0]  # type: ignore[union-attr]
    if negative:
        raise ModelError(
            f"A variance cannot be negative, but running_var is in {negative[:5]}. Load a sound checkpoint."
        )


def _untrained(layer: nn.Module) -> bool:
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())  # type: ignore[union-attr]


def _no_batch_norm(model: nn.Module) -> str:
    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    if convolutions and all(module.bias is not None for module in convolutions):
        return (
            f"{type(model).__name__} has no BatchNorm layer, and all its convolutions have a bias: BatchNorm seems to "
            f"have been folded into them. Give the model as it was before folding. {INSTEAD}"
        )
    name = type(model).__name__
    return f"{name} has no BatchNorm layer with running statistics, so there is nothing to invert. {INSTEAD}"


def complete_spec(
    model: nn.Module,
    *,
    shape: tuple[int, ...] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    value_range: tuple[float, float] | None = None,
    num_classes: int | None = None,
    registry: Registry | None = None,
) -> InputSpec:
    """Complete an input specification by what the model tells.

    A plugin that recognises the model (hook `dfq_infer_input_spec`) is asked first; then the shape is read off the
    first layer, the spatial size is found if the network accepts just one, and the classes off a trial run.

    Raises:
        UsageError: the shape cannot be known and was not given.
        ModelError: the model does not accept the shape.
    """
    known = registry.infer_input_spec(model) if registry is not None else None
    if known is not None and shape is not None and shape[0] != known.channels:
        known = None
    if known is not None:
        mean, std = (known.mean, known.std) if mean is None and std is None else (mean, std)
        value_range = value_range or known.value_range
    shape = shape or (known.shape if known is not None else infer_shape(model))
    outputs = trial_run(model, shape)
    if num_classes is None and outputs.ndim == 2:  # noqa: PLR2004  (batch, classes)
        num_classes = outputs.shape[1]
    return InputSpec(shape, mean, std, value_range, num_classes)


def checked_spec(model: nn.Module, spec: InputSpec | None, registry: Registry) -> InputSpec:
    """Complete the specification, or make sure that the model takes and gives what it says.

    Raises:
        UsageError: the shape cannot be inferred, or the number of classes is another one.
        ModelError: the model does not accept the shape.
    """
    if spec is None:
        return complete_spec(model, registry=registry)
    outputs = trial_run(model, spec.shape)
    if spec.num_classes is None and outputs.ndim == 2:  # noqa: PLR2004  (batch, classes)
        return replace(spec, num_classes=outputs.shape[1])
    if spec.num_classes is not None and outputs.shape[1:] != (spec.num_classes,):
        raise UsageError(
            f"num_classes is {spec.num_classes}, but the model returns {tuple(outputs.shape[1:])} values a sample. "
            "Leave num_classes out to have it read off the model."
        )
    return spec


def infer_shape(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of one input sample where the model leaves no choice.

    Raises:
        UsageError: several sizes, or none, would do.
    """
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, nn.Conv2d):
        shapes = ((first.in_channels, size, size) for size in CANDIDATE_SIZES)
        fits = list(itertools.islice((shape for shape in shapes if _accepts(model, shape)), 2))
        if len(fits) == 1:
            return fits[0]
    channels = "channels" if first is None else str(first.in_channels)
    axes = {nn.Conv1d: ("length",), nn.Conv3d: ("depth", "height", "width")}
    wanted = (channels, *axes.get(type(first), ("height", "width")))  # type: ignore[arg-type]
    raise UsageError(
        f"The spatial size of the input cannot be read off {type(model).__name__}. Say it: "
        f"InputSpec(shape=({', '.join(wanted)})), or --shape {','.join(wanted).upper()} on the command line."
    )


def _accepts(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        trial_run(model, shape)
    except ModelError:
        return False
    return True


def trial_run(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Run the model on two blank samples and return its output.

    Raises:
        ModelError: the model does not accept that shape, or returns no tensor.
    """
    kind = next(model.parameters(), torch.empty(0)).dtype
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(2, *shape, device=device_of(model), dtype=kind))
    except Exception as error:
        message = (
            f"The model does not accept inputs of shape {shape} (channels first, without the batch): "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}. "
            "Give the shape of one sample as the network takes it."
        )
        raise ModelError(message) from error
    if not isinstance(outputs, torch.Tensor):
        raise ModelError(
            f"The model must return one tensor, got {type(outputs).__name__}. "
            "Wrap it in a module that returns the logits."
        )
    return outputs
