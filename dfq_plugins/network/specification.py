"""Infers and checks the specification of a network's input."""

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
    standardized_samples: bool = False,
    registry: Registry | None = None,
) -> InputSpec:
    """Infer the missing parts of an input specification from the model.

    A plugin that recognizes the model (hook `dfq_infer_input_spec`) takes precedence. Otherwise the shape is inferred
    from the first layer, with the spatial size if the network accepts only one, and the number of classes from a trial
    run.

    Raises:
        UsageError: the shape is not given and cannot be inferred.
        ModelError: the model does not accept the shape.
    """
    known = registry.infer_input_spec(model) if registry is not None else None
    if known is not None and shape is not None and shape[0] != known.channels:
        known = None
    if known is not None and not standardized_samples:
        mean, std = (known.mean, known.std) if mean is None and std is None else (mean, std)
        value_range = value_range or known.value_range
    shape = shape or (known.shape if known is not None else infer_shape(model))
    outputs = trial_run(model, shape)
    if num_classes is None and outputs.ndim == 2:  # noqa: PLR2004  (batch, classes)
        num_classes = outputs.shape[1]
    return InputSpec(shape, mean, std, value_range, num_classes, standardized_samples)


def resolve_spec(
    model: nn.Module, given: InputSpec | None, registry: Registry, *, shape: tuple[int, ...] | None = None
) -> InputSpec:
    """Return the specification of a model's input: the given one, checked, or the inferred one.

    Args:
        model: the network.
        given: the specification from the caller or the data; None infers it.
        registry: the plugins that may recognize the model.
        shape: shape of one sample of the data, if there is any.

    Raises:
        UsageError: the shape cannot be inferred, or the number of classes differs from the model's.
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
            "Omit num_classes to infer it from the model."
        )
    return given
