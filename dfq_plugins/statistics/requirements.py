"""What a network must have for its BatchNorm statistics to be inverted."""

from __future__ import annotations

from torch import nn

from dfq_plugins.errors import ModelError
from dfq_plugins.statistics.batch_norm import statistics_layers

INSTEAD = "Use the generator 'gaussian' or 'inception', which need no BatchNorm, or give real samples."


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
