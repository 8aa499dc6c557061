"""Recognizes torchvision's classification models and reads their input from the transforms of the published weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

PUBLISHED_CLASSES = 1000
CHANNELS = 3


@hookimpl
def dfq_infer_input_spec(model: nn.Module) -> InputSpec | None:
    """Return the input specification of a torchvision classification model with three channels, else None.

    The variant (EfficientNet B0 takes 224 pixels, B4 takes 380) is identified by its number of parameters. Returns None
    if that number is unknown and the variants of the family differ. The number of classes is that of the last layer; a
    network whose last layer was replaced by one with a single output is not a classifier.

    Source: `transforms` of torchvision's weights; the first ones if a variant has several.
    """
    family = type(model).__module__
    if not family.startswith("torchvision.models.") or family.count(".") != 2:  # noqa: PLR2004  detection models are nested deeper
        return None
    if _input_channels(model) != CHANNELS:
        return None
    presets, size = list(_presets(family)), _published_parameters(model)
    known = [spec for parameters, spec in presets if parameters == size]
    alike = [presets[0][1]] if len({spec for _, spec in presets}) == 1 else []
    found = next(iter([*known, *alike]), None)
    return None if found is None else replace(found, num_classes=_classes(model))


def _classes(model: nn.Module) -> int | None:
    """Return the number of outputs of the classifier; 0 if there is only one, None if the last layer is not one."""
    from torch import nn  # noqa: PLC0415  heavy

    layers = [module for module in model.modules() if not list(module.children())]
    if type(model).__name__ == "SqueezeNet":  # its classifier is a convolution, before a rectifier and a mean
        layers = [module for module in layers if isinstance(module, nn.Conv2d)]
    last = layers[-1]
    classes = getattr(last, "out_features", getattr(last, "out_channels", None))
    return 0 if classes == 1 else classes


def _presets(family: str) -> Iterator[tuple[int, InputSpec]]:
    """Yield the number of parameters and the input of all weights that a torchvision module publishes."""
    from torchvision.models import WeightsEnum  # noqa: PLC0415  heavy

    for kind in vars(sys.modules[family]).values():
        if isinstance(kind, type) and issubclass(kind, WeightsEnum):
            published: Any = kind  # an enumeration, although torchvision's annotations do not say so
            for weights in published:
                preset = weights.transforms()
                side = preset.crop_size[0]
                spec = InputSpec((CHANNELS, side, side), tuple(preset.mean), tuple(preset.std), (0.0, 1.0))
                yield weights.meta["num_params"], spec


def _input_channels(model: nn.Module) -> int | None:
    from torch import nn  # noqa: PLC0415  heavy

    convolutions = (module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    return next((module.in_channels for module in convolutions), None)


def _published_parameters(model: nn.Module) -> int:
    """Return the number of parameters that the model would have with the classes of the published weights."""
    from torch import nn  # noqa: PLC0415  heavy

    count = sum(parameter.numel() for parameter in model.parameters())
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        return count
    return count + (PUBLISHED_CLASSES - linear[-1].out_features) * (linear[-1].in_features + 1)
