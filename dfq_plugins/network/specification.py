"""Infers and checks the specification of a network's input, and whether it is a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from dfq_plugins.errors import UsageError
from dfq_plugins.network.outputs import class_logits, class_scores, described
from dfq_plugins.network.trial import infer_shape, trial_run
from dfq_plugins.types import InputSpec, as_specification

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import GivenSpec, NetworkSpec, Specification


Spec = TypeVar("Spec", bound="InputSpec | NetworkSpec")


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
    from the first layer, with the spatial size if the network accepts only one. The number of classes is never inferred
    from a shape: it stays None unless it is given or the plugin says it.

    Raises:
        UsageError: the shape is not given and cannot be inferred, or no output has the given number of classes.
        ModelError: the model does not accept the shape.
    """
    known = registry.infer_input_spec(model) if registry is not None else None
    if known is not None and shape is not None and shape[0] != known.channels:
        known = None
    if known is not None and not standardized_samples:
        mean, std = (known.mean, known.std) if mean is None and std is None else (mean, std)
        value_range = value_range or known.value_range
    shape = shape or (known.shape if known is not None else infer_shape(model))
    outputs = trial_run(model, InputSpec(shape))
    spec = InputSpec(shape, mean, std, value_range, num_classes, standardized_samples)
    return _with_classes(spec, outputs, known)


def resolve_spec(
    model: nn.Module,
    given: GivenSpec | None,
    registry: Registry,
    *,
    shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None,
) -> Specification:
    """Return the specification of a model's input: the given one, checked, or the inferred one.

    Args:
        model: the network.
        given: the specification from the caller or the data; None infers it.
        registry: the plugins that may recognize the model.
        shape: shape of one sample of the data, if there is any; by name if the data holds several inputs.

    Raises:
        UsageError: the shape cannot be inferred, the model takes other inputs, or integers, or no output has the given
            number of classes.
        ModelError: the model does not accept the shape.
    """
    if given is None and isinstance(shape, Mapping):
        given = {name: InputSpec(one) for name, one in shape.items()}
    elif given is None and not isinstance(shape, Mapping):
        return complete_spec(model, shape=shape, registry=registry)
    given = as_specification(given)
    assert given is not None  # noqa: S101  for the type checker: it was not None
    outputs = trial_run(model, given)
    return _with_classes(given, outputs, registry.infer_input_spec(model) if given.num_classes is None else None)


def require_classes(model: nn.Module, spec: Specification, need: str) -> None:
    """Reject a network that is not known to have logits `(samples, classes)`.

    Args:
        model: the network.
        spec: its specification.
        need: what needs a classifier and how to do without, for the message: a sentence or two.

    Raises:
        UsageError: the specification does not say that it is a classifier, or its classes are those of a map.
    """
    if spec.num_classes is None:
        raise UsageError(
            f"{need} Whether {type(model).__name__} is a classifier is not known: set num_classes in the input "
            "specification (--num-classes on the command line)."
        )
    if class_logits(trial_run(model, spec), spec.num_classes) is None:
        raise UsageError(f"{need} {type(model).__name__} has no logits (samples, classes).")


def _with_classes(spec: Spec, outputs: Mapping[str, Tensor], known: InputSpec | None) -> Spec:
    """Return the specification with the number of classes that it or a plugin says, checked against the outputs."""
    if spec.num_classes is None:
        said = None if known is None else known.num_classes
        return replace(spec, num_classes=said) if said == 0 or _has_classes(outputs, said) else spec
    if spec.num_classes and not _has_classes(outputs, spec.num_classes):
        raise UsageError(
            f"num_classes is {spec.num_classes}, but the model returns {described(outputs)} values per sample. Give "
            "the number of class logits, or 0 if the network is not a classifier."
        )
    return spec


def _has_classes(outputs: Mapping[str, Tensor], num_classes: int | None) -> bool:
    return any(class_scores(output, num_classes) is not None for output in outputs.values())
