"""Plugin options: frozen dataclasses, checked against their annotations.

Values come from Python or, as text, from the command line: "300" becomes an int, "none" becomes None, "1,2" a tuple.

A record whose class defines `PRESETS`, a mapping of names to field values, also accepts the option `preset`. A preset
only fills in values: the record holds those, and options given explicitly override it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dfq_plugins.errors import DfqError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

Record = TypeVar("Record")

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}

PRESET = "preset"
"""The option that names a preset."""


@dataclasses.dataclass(frozen=True)
class OptionRow:
    """One option as listings show it, all as text."""

    name: str
    type: str
    default: str
    help: str


def parse_options(options_type: type[Record], options: object = None, *, owner: str = "") -> Record:
    """Return a checked options record.

    Args:
        options_type: the frozen dataclass of the plugin's options.
        options: None for the defaults, a mapping of option names to values or text, or a record of that type.
        owner: the owner of the options, for error messages: "generator 'bns'".

    Raises:
        UsageError: an option is unknown, a value is invalid, or `options` is a record of another type.

    >>> from dfq_plugins.listeners.log import LogOptions
    >>> parse_options(LogOptions, {"interval": "2.5"})
    LogOptions(level='INFO', interval=2.5)
    """
    of_owner = f" of {owner}" if owner else ""
    given = _with_preset(options_type, _as_mapping(options_type, options, of_owner), of_owner)
    hints = get_type_hints(options_type, include_extras=True)
    known = _fields(options_type)
    for name in given:
        if name not in known:
            raise UsageError(_unknown_option_message(name, known, of_owner))
    values = {name: _parse(known[name], hints[name], value, of_owner) for name, value in given.items()}
    try:
        return options_type(**values)
    except DfqError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"The options{of_owner} are inconsistent: {error}. Change one of them.") from error


def describe_options(options_type: type[Any]) -> tuple[OptionRow, ...]:
    """Return the name, type with limits, default and help text of every option.

    >>> from dfq_plugins.listeners.log import LogOptions
    >>> describe_options(LogOptions)[1]
    OptionRow(name='interval', type='float >= 0', default='10.0', help='seconds between two records of a stage')
    """
    hints = get_type_hints(options_type, include_extras=True)
    rows = [
        OptionRow(name, type_text(hints[name]), _default_text(field), str(field.metadata.get("help", "")))
        for name, field in _fields(options_type).items()
    ]
    presets = presets_of(options_type)
    if presets:
        help_text = "named values for several options; options given explicitly override it"
        rows.insert(0, OptionRow(PRESET, " or ".join(presets), "none", help_text))
    return tuple(rows)


def presets_of(options_type: type[Any]) -> Mapping[str, Mapping[str, object]]:
    """Return the presets of an options record by name, each with the values of some of its fields."""
    presets: Mapping[str, Mapping[str, object]] = getattr(options_type, "PRESETS", {})
    return presets


def type_text(hint: Any) -> str:
    """Describe a type annotation in a few words.

    >>> from annotated_types import Gt
    >>> type_text(Annotated[float, Gt(0)] | None)
    'float > 0 or none'
    >>> type_text(Literal["kl", "l2"])
    'kl or l2'
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([type_text(arguments[0]), " and ".join(_limits(arguments[1:]))]).strip()
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in {Union, types.UnionType}:
        return " or ".join(map(type_text, arguments))
    if hint is type(None):
        return "none"
    if origin in {tuple, list}:
        return f"{origin.__name__} of " + ", ".join("..." if part is ... else type_text(part) for part in arguments)
    return str(getattr(hint, "__name__", hint))


def _as_mapping(options_type: type[Any], options: object, of_owner: str) -> Mapping[str, Any]:
    if options is None:
        return {}
    if isinstance(options, Mapping):
        return options
    if isinstance(options, options_type):
        return {name: getattr(options, name) for name in _fields(options_type)}
    raise UsageError(
        f"The options{of_owner} must be a mapping or a {options_type.__name__}, "
        f"got {type(options).__name__}: {options!r}."
    )


def _with_preset(options_type: type[Any], given: Mapping[str, Any], of_owner: str) -> Mapping[str, Any]:
    """Return the values of the requested preset, overridden by the given options."""
    presets = presets_of(options_type)
    if not presets or PRESET not in given:
        return given
    others, name = {key: value for key, value in given.items() if key != PRESET}, given[PRESET]
    if name in (None, "none"):
        return others
    if name not in presets:
        raise UsageError(
            f"Unknown preset {name!r}{of_owner}.{nearest(str(name), presets)} Choose {' or '.join(presets)}, or none "
            "for the defaults."
        )
    return {**presets[name], **others}


def _fields(options_type: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(options_type) if field.init}


def _unknown_option_message(name: str, known: Mapping[str, object], of_owner: str) -> str:
    listed = f"Valid options: {', '.join(known)}." if known else "It has no options."
    return f"Unknown option {name!r}{of_owner}.{nearest(str(name), known)} {listed}"


def _parse(field: dataclasses.Field[Any], hint: Any, value: object, of_owner: str) -> object:
    """Check one value against its annotation; pydantic converts it from text."""
    import pydantic

    # Field by field, so that the record's __post_init__ raises its own errors and infinity can be rejected.
    adapter = pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
    try:
        return adapter.validate_python(_from_text(value, hint) if isinstance(value, str) else value)
    except pydantic.ValidationError as error:
        rules = dict.fromkeys(_lower_first(problem["msg"]) for problem in error.errors(include_url=False))
        raise UsageError(
            f"Option {field.name!r}{of_owner} cannot be {value!r}: {'; or '.join(rules)}. "
            f"Give {type_text(hint)}; the default is {_default_text(field)}."
        ) from error


def _from_text(text: str, hint: Any) -> object:
    """Convert text from the command line to the types that pydantic does not parse itself: None and sequences."""
    kinds = set(_alternatives(hint))
    if type(None) in kinds and text.strip().lower() in {"none", "null"}:
        return None
    if kinds & {tuple, list} and str not in kinds:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _alternatives(hint: Any) -> Iterator[Any]:
    """Yield the plain types that an annotation allows: `Annotated[int, ...] | None` allows int and NoneType."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield from _alternatives(get_args(hint)[0])
    elif origin in {Union, types.UnionType}:
        for argument in get_args(hint):
            yield from _alternatives(argument)
    else:
        yield origin or hint


def _limits(metadata: tuple[Any, ...]) -> Iterator[str]:
    for item in metadata:
        for name, sign in _SIGNS.items():
            if getattr(item, name, None) is not None:
                yield f"{sign} {getattr(item, name)}"
        for name, words in _LENGTHS.items():
            if getattr(item, name, None):
                yield f"with {words} {getattr(item, name)} items"


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _value_text(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else _value_text(field.default)


def _value_text(value: object) -> str:
    """Format a value as it is written on the command line.

    >>> _value_text((1, 2)), _value_text(None), _value_text(True)
    ('1,2', 'none', 'true')
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
