"""Trial runs of a network: which inputs it accepts, what it returns, and whether it is finite."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from dfq_plugins.errors import ModelError, UsageError, first_line
from dfq_plugins.model_state import device_of
from dfq_plugins.network.outputs import sample_outputs

CANDIDATE_SIZES = (8, 16, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384)
"""Square image sizes to try on a network that may accept only one."""

TRIAL_SAMPLES = 2


def check_finite(model: nn.Module) -> None:
    """Reject a model with NaN or infinite parameters or buffers.

    Raises:
        ModelError: a tensor is not finite; the message names the first few.
    """
    wrong = [
        name
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if wrong:
        raise ModelError(
            f"Weights and statistics must be finite, but NaN or infinity was found in {wrong[:5]}. "
            "Load a valid checkpoint."
        )


def infer_shape(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of one input sample if the model accepts only one.

    Raises:
        UsageError: several sizes, or none of those tried, are accepted.
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
        f"The spatial size of the input cannot be inferred from {type(model).__name__}. Pass "
        f"InputSpec(shape=({', '.join(wanted)})), or --shape {','.join(wanted).upper()} on the command line."
    )


def _accepts(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        trial_run(model, shape)
    except ModelError:
        return False
    return True


def trial_run(model: nn.Module, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Run the model on two blank samples and return its outputs by name; see `network.outputs.sample_outputs`.

    Raises:
        ModelError: the model does not accept that shape, or returns no floating-point tensor with one entry per sample.
    """
    kind = next(model.parameters(), torch.empty(0)).dtype
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(TRIAL_SAMPLES, *shape, device=device_of(model), dtype=kind))
    except Exception as error:
        message = (
            f"The model does not accept inputs of shape {shape} (channels first, without the batch): "
            f"{first_line(error)}. "
            "Give the shape of one sample as the network expects it."
        )
        raise ModelError(message) from error
    return sample_outputs(outputs, TRIAL_SAMPLES)
