"""Completes and checks the specification of a network's input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError
from dfq_plugins.network.trial import infer_shape, trial_run
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.host.registry import Registry


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

    A plugin that recognizes the model (hook `dfq_infer_input_spec`) is asked first; then the shape is read off the
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


def resolve_spec(
    model: nn.Module, given: InputSpec | None, registry: Registry, *, shape: tuple[int, ...] | None = None
) -> InputSpec:
    """Return the specification of a model's input: the given one, checked, or what can be inferred.

    Args:
        model: the network.
        given: what the caller or the data say an input looks like; None infers it.
        registry: whose plugins are asked what they know of the model.
        shape: shape of one sample of the data, where there are any.

    Raises:
        UsageError: the shape cannot be inferred, or the number of classes is another one.
        ModelError: the model does not accept the shape.
    """
    if given is None:
        return complete_spec(model, shape=shape, registry=registry)
    outputs = trial_run(model, given.shape)
    if given.num_classes is None and outputs.ndim == 2:  # noqa: PLR2004  (batch, classes)
        return replace(given, num_classes=outputs.shape[1])
    if given.num_classes is not None and outputs.shape[1:] != (given.num_classes,):
        raise UsageError(
            f"num_classes is {given.num_classes}, but the model returns {tuple(outputs.shape[1:])} values per sample. "
            "Leave num_classes out to infer it from the model."
        )
    return given
