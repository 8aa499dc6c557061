"""Compares the names in a specification with the parameters of a network's forward, before it is run."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from dfq_plugins.types import NetworkSpec, Specification

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SHOWN = 8


@dataclass(frozen=True)
class Signature:
    """The parameters of a forward.

    Args:
        text: the signature as it is written, for messages.
        positional: names of the parameters that can be given by position, in order.
        keywords: names of the parameters that can be given by keyword.
        required: names of the parameters without a default.
        any_positional: whether it takes any number of positional arguments.
        any_keyword: whether it takes any keyword.
    """

    text: str
    positional: tuple[str, ...]
    keywords: tuple[str, ...]
    required: tuple[str, ...]
    any_positional: bool
    any_keyword: bool

    @property
    def plain(self) -> bool:
        """Whether there is one parameter and nothing else, which can be given by position."""
        return len(self.positional) == 1 and not (
            self.others or self.any_positional or self.any_keyword or set(self.keywords) - set(self.positional)
        )

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the parameters that have a default."""
        named = dict.fromkeys((*self.positional, *self.keywords))
        return tuple(name for name in named if name not in self.required)


def signature_of(model: nn.Module) -> Signature | None:
    """Return the parameters of the model's forward; None if Python does not know them.

    >>> from torch import nn
    >>> signature_of(nn.Linear(2, 1)).required
    ('input',)
    """
    try:
        found = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    parameters = found.parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    named = [parameter for parameter in parameters if parameter.kind not in _VARIADIC]
    return Signature(
        text=f"forward({', '.join(_written(parameter) for parameter in parameters)})",
        positional=tuple(p.name for p in named if p.kind in _POSITIONAL),
        keywords=tuple(p.name for p in named if p.kind is not inspect.Parameter.POSITIONAL_ONLY),
        required=tuple(p.name for p in named if p.default is inspect.Parameter.empty),
        any_positional=inspect.Parameter.VAR_POSITIONAL in kinds,
        any_keyword=inspect.Parameter.VAR_KEYWORD in kinds,
    )


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_STARS: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def _written(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
    return f"{_STARS.get(parameter.kind, '')}{parameter.name}{default}"


def check_call(model: nn.Module, spec: Specification) -> None:
    """Check that the model's forward takes the inputs of a specification, in the way that it says.

    Raises:
        UsageError: a required parameter has no input, or an input no parameter; the message lists the parameters.
    """
    signature = signature_of(model)
    if signature is None:
        return
    if isinstance(spec, InputSpec):
        _check_single(model, spec, signature)
        return
    checks = {"keywords": _check_keywords, "positional": _check_positional, "dictionary": _check_dictionary}
    if reason := checks[spec.call](spec, signature):
        raise UsageError(f"{type(model).__name__} takes {signature.text}, but {reason}")


def _check_single(model: nn.Module, spec: InputSpec, signature: Signature) -> None:
    required = signature.required
    if len(required) > 1 or (required and required[0] not in signature.positional):
        example = ", ".join(f'"{name}": InputSpec(...)' for name in required[:_SHOWN])
        flags = " ".join(f"--input {name}:SHAPE" for name in required[:_SHOWN])
        inputs = "several inputs" if len(required) > 1 else "its input by keyword only"
        raise UsageError(
            f"{type(model).__name__} takes {inputs}, {signature.text}, but the specification describes one without a "
            f"name, of shape {spec.shape}. Give the specification of each by name, {{{example}}}, or {flags} on the "
            "command line."
        )


def _check_keywords(spec: NetworkSpec, signature: Signature) -> str:
    unknown = [name for name in spec.order if name not in signature.keywords]
    if unknown and not signature.any_keyword:
        advice = "Use the names of its parameters"
        if all(name in signature.positional or signature.any_positional for name in spec.order):
            advice = 'Set call="positional"'
        elif len(signature.required) == 1:
            advice += ', or, if it takes one dictionary, set call="dictionary"'
        return f"the specification names {_listed(unknown)}. {advice}."
    if missing := [name for name in signature.required if name not in spec.order]:
        return f"the specification lacks {_listed(missing)}. Add an InputSpec under that name."
    return ""


def _check_positional(spec: NetworkSpec, signature: Signature) -> str:
    if len(spec.order) > len(signature.positional) and not signature.any_positional:
        return f"the specification gives {len(spec.order)} inputs by position. Leave out those that it does not take."
    given = signature.positional[: len(spec.order)]
    if missing := [name for name in signature.required if name not in given]:
        return (
            f"the specification gives {len(spec.order)} inputs by position, without {_listed(missing)}. Add an "
            "InputSpec for each."
        )
    return ""


def _check_dictionary(_spec: NetworkSpec, signature: Signature) -> str:
    takes_one = len(signature.required) <= 1 and (signature.positional or signature.any_positional)
    if takes_one and set(signature.required) <= set(signature.positional):
        return ""
    return 'the specification passes one dictionary. Set call="keywords" or call="positional".'


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN]))
