"""Unstructured pruning with `torch.nn.utils.prune`: sets the smallest weights of the whole network to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils import prune

from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.network.masks import masks_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001  no public base


def prune_weights(model: nn.Module, sparsity: float) -> None:
    """Mask the smallest weights of all convolutions and linear layers, in place.

    The masks stay active during training, until `bake`.

    Args:
        model: the network; its layers get the parameter `weight_orig` and the buffer `weight_mask`.
        sparsity: share of all these weights to mask.

    Raises:
        UsageError: a layer would lose all its weights.
        ModelError: the network has no such layer.
    """
    layers = weighted_layers(model)
    prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()], pruning_method=prune.L1Unstructured, amount=sparsity
    )
    require_weights(masks_of(model), f"A sparsity of {sparsity:g}")


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers by name.

    Raises:
        ModelError: there are none.
    """
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)
    }
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no convolution or linear layer whose weights could be set to zero. Give a "
            "network of torch.nn layers."
        )
    return layers


def require_weights(masks: Mapping[str, Tensor], what: str) -> None:
    """Reject masks that leave a layer without weights.

    Raises:
        UsageError: a layer would lose all its weights.
    """
    for name, mask in masks.items():
        if not bool(mask.any()):
            layer = name.rpartition(".")[0] or "the only one"
            raise UsageError(
                f"{what} would empty the layer {layer!r}: all its {mask.numel()} weights are among the smallest. "
                "Use a lower sparsity."
            )
