"""Requirements on a network for the inversion of its BatchNorm statistics."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfq_plugins.errors import ModelError
from dfq_plugins.statistics.batch_norm import statistics_layers, untrained

INSTEAD = "Use the generator 'gaussian' or 'inception', which need no BatchNorm, or provide real samples."


def require_batch_norm(model: nn.Module) -> None:
    """Reject a model without trained BatchNorm statistics: there is nothing to invert.

    Raises:
        ModelError: the model has no BatchNorm, its BatchNorm is folded, or its statistics are untrained or invalid.
    """
    layers = statistics_layers(model)
    if not layers:
        raise ModelError(_no_batch_norm_message(model))
    if all(untrained(layer) for layer in layers.values()):
        raise ModelError(
            f"All {len(layers)} BatchNorm layers still hold their initial statistics (mean 0, variance 1): the model "
            f"was never trained, or its weights were not loaded. Load trained weights. {INSTEAD}"
        )
    negative = [name for name, layer in layers.items() if float(layer.running_var.min()) < 0]  # type: ignore[union-attr]
    if negative:
        raise ModelError(
            f"Variances cannot be negative, but running_var is negative in {negative[:5]}. Load a valid checkpoint."
        )


def _no_batch_norm_message(model: nn.Module) -> str:
    untracked = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if untracked:
        return (
            f"The BatchNorm layers of {type(model).__name__} store no running statistics (track_running_stats=False), "
            f"so there is nothing to invert. {INSTEAD}"
        )
    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    if convolutions and all(module.bias is not None for module in convolutions):
        return (
            f"{type(model).__name__} has no BatchNorm layer, and all its convolutions have a bias: BatchNorm has "
            f"probably been folded into them. Pass the model from before folding. {INSTEAD}"
        )
    name = type(model).__name__
    return f"{name} has no BatchNorm layer with running statistics, so there is nothing to invert. {INSTEAD}"
