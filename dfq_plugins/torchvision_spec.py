"""Recognises torchvision's classification models: their weights share one normalisation and, mostly, one size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, INCEPTION_SIDE = 224, 299


@hookimpl
def dfq_infer_input_spec(model: nn.Module) -> InputSpec | None:
    """Return the input of a torchvision classification model with three channels, else None.

    Source: the `transforms` presets of torchvision's weights (resize to 224, or 299 for Inception v3).
    """
    module = type(model).__module__
    parts = module.split(".")
    if parts[:2] != ["torchvision", "models"] or len(parts) != 3:  # noqa: PLR2004  detection has deeper modules
        return None
    side = INCEPTION_SIDE if parts[2] == "inception" else SIDE
    return InputSpec((3, side, side), IMAGENET_MEAN, IMAGENET_STD, (0.0, 1.0))
