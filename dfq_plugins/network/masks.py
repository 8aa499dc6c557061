"""Masks of individual weights, as `torch.nn.utils.prune` attaches them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.utils import prune

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks that `torch.nn.utils.prune` attached, by the name of the weight: `layer.weight`."""
    suffix = "_mask"
    return {name.removesuffix(suffix): mask for name, mask in model.named_buffers() if name.endswith(f"weight{suffix}")}


def attach_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Attach masks to the weights of the given names, in place."""
    for name, mask in masks.items():
        layer, _, parameter = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(layer), parameter, mask)  # type: ignore[no-untyped-call]


def bake(model: nn.Module) -> None:
    """Set masked weights to zero permanently and remove the masks, in place; only plain layers remain."""
    for name in list(masks_of(model)):
        layer, _, parameter = name.rpartition(".")
        prune.remove(model.get_submodule(layer), parameter)  # type: ignore[no-untyped-call]
