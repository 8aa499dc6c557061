"""Lists the installed generators, calibrators and listeners by name, and builds them."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import pkgutil
import re
import sys
from dataclasses import is_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, overload

from dfq_plugins.errors import PluginError, UsageError, nearest
from dfq_plugins.host.loading import PluginHost
from dfq_plugins.host.options import describe_options, parse_options
from dfq_plugins.host.plugin_info import KINDS, Kind, PluginInfo, PluginKind, attributed, attributed_iterator
from dfq_plugins.types import CalibratorEntry, InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from importlib.metadata import EntryPoint

    from torch import nn

    from dfq_plugins.host.loading import BrokenPlugin
    from dfq_plugins.types import Calibrator, DataGenerator, LearningGenerator, PluginEntry, ProgressEvent

__all__ = ["Kind", "PluginInfo", "Registry", "attributed", "attributed_iterator", "build_registry", "get_registry"]


class Registry:
    """The generators, calibrators and listeners of the loaded plugins, by kind and name.

    Raises:
        PluginError: two plugins provide the same name.
    """

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._provided = {kind: _collect_plugins(host, kind) for kind in KINDS}

    @property
    def generators(self) -> Mapping[str, PluginInfo]:
        """All generators by name, including unavailable ones."""
        return self.of("generator")

    @property
    def learning_generators(self) -> Mapping[str, PluginInfo]:
        """All generators that learn from a student by name, including unavailable ones."""
        return self.of("learning generator")

    @property
    def calibrators(self) -> Mapping[str, PluginInfo]:
        """All calibrators by name, including unavailable ones."""
        return self.of("calibrator")

    @property
    def listeners(self) -> Mapping[str, PluginInfo]:
        """All progress listeners by name, including unavailable ones."""
        return self.of("listener")

    @property
    def broken(self) -> tuple[BrokenPlugin, ...]:
        """The plugins that were set aside, each with its error."""
        return tuple(self._host.broken)

    def of(self, kind: Kind) -> Mapping[str, PluginInfo]:
        """Return all plugins of one kind by name."""
        return MappingProxyType(self._provided[kind])

    def find(self, kind: Kind, name: str) -> PluginInfo:
        """Return the plugin of that name, which must be ready.

        Raises:
            PluginError: there is none, or its requirements are not installed.
            UsageError: it is a generator that learns from a student, and cannot make data sets.
        """
        info = self._provided[kind].get(name)
        if info is None and kind == "generator" and name in self.learning_generators:
            raise UsageError(
                f"Generator {name!r} learns from a student and cannot make a data set without one. Use it in "
                f"finetune(model, data, generator={name!r}, ...), or in dfq finetune with --generator {name}."
            )
        if info is None:
            raise PluginError(self._unknown_message((kind,), name))
        if info.missing:
            raise PluginError(
                f"{kind.capitalize()} {name!r} needs {', '.join(info.missing)} (not installed). "
                f"Run: {info.install_line}"
            )
        return info

    def kind_of(self, name: str, kinds: Iterable[Kind]) -> Kind:
        """Return the first of the kinds that has a plugin of that name.

        Raises:
            PluginError: none of them has one.
        """
        wanted = tuple(kinds)
        for kind in wanted:
            if name in self._provided[kind]:
                return kind
        raise PluginError(self._unknown_message(wanted, name))

    def options(self, kind: Kind, name: str, options: object = None) -> Any:
        """Return the options record of a plugin, from a mapping or such a record, or with its defaults.

        Raises:
            PluginError: the plugin is unknown or unavailable.
            UsageError: an option is unknown or its value is invalid.
        """
        info = self.find(kind, name)
        return parse_options(info.entry.options, options, owner=f"{kind} {name!r}")

    @overload
    def create(self, kind: Literal["generator"], name: str, options: object = None) -> DataGenerator: ...
    @overload
    def create(self, kind: Literal["learning generator"], name: str, options: object = None) -> LearningGenerator: ...
    @overload
    def create(self, kind: Literal["calibrator"], name: str, options: object = None) -> Calibrator: ...
    @overload
    def create(
        self, kind: Literal["listener"], name: str, options: object = None
    ) -> Callable[[ProgressEvent], None]: ...

    def create(self, kind: Kind, name: str, options: object = None) -> Any:
        """Build the object that a plugin registered; this is when its framework is imported.

        Args:
            kind: "generator", "learning generator", "calibrator" or "listener".
            name: the registered name.
            options: a mapping (text values, as typed on the command line, are converted), an options record of the
                plugin, or None for the defaults.

        Raises:
            PluginError: the plugin is unknown or unavailable, cannot be imported, or builds an object of the wrong
                type.
            UsageError: an option is unknown or its value is invalid.
        """
        info = self.find(kind, name)
        record = self.options(kind, name, options)
        factory, base = _import_factory(info), KINDS[kind].base
        lacking = sorted(getattr(factory, "__abstractmethods__", ()))
        if lacking:
            raise PluginError(
                f"The {info} builds a {factory.__name__} without {', '.join(lacking)}(). Implement every abstract "
                f"method of dfq_plugins.types.{base.__name__}."
            )
        with attributed(info):
            built = factory(record)
        if not isinstance(built, base) or not (kind != "listener" or callable(built)):
            wanted = "callable" if kind == "listener" else f"dfq_plugins.types.{base.__name__}"
            raise PluginError(f"The {info} builds a {type(built).__name__}, which is not a {wanted}. Subclass it.")
        return built

    def infer_input_spec(self, model: nn.Module) -> InputSpec | None:
        """Ask the plugins for the input specification of `model`, third-party plugins before the built-in ones."""
        for _, spec in self._host.call("dfq_infer_input_spec", _spec_or_none, model=model):
            if spec is not None:
                return spec  # type: ignore[no-any-return]  # checked by _spec_or_none
        return None

    def _unknown_message(self, kinds: tuple[Kind, ...], name: str) -> str:
        known = {key: info for kind in kinds for key, info in self._provided[kind].items()}
        ready = [key for key, info in known.items() if not info.missing]
        absent = [f"{key} ({info.install_line})" for key, info in known.items() if info.missing]
        hint = nearest(name, [*known, *(plugin.entry_point for plugin in self.broken)])
        parts = [f"Unknown {kinds[-1]} {name!r}.{hint}", f"Available: {', '.join(ready) or 'none'}."]
        if absent:
            parts.append(f"Not installed: {', '.join(absent)}.")
        if self.broken:
            parts.append(f"Broken: {'; '.join(map(str, self.broken))}.")
        if not known and not self.broken:
            parts.append("Built-in plugins are also found through installed metadata: run pip install dfq-plugins.")
        return " ".join(parts)


def build_registry(*, entry_points: Iterable[EntryPoint] | None = None, strict: bool | None = None) -> Registry:
    """Load plugins into a fresh plugin manager.

    Args:
        entry_points: the entry points to load; None loads all installed ones of the group `dfq_plugins`.
        strict: raise for a broken plugin; None reads the environment variable `DFQ_STRICT_PLUGINS`.

    Raises:
        PluginError: a hook is invalid, or two plugins provide the same name.
    """
    return Registry(PluginHost(entry_points, strict=strict))


@functools.cache
def get_registry() -> Registry:
    """Return the registry of all installed plugins, built once per process."""
    return build_registry()


def _collect_plugins(host: PluginHost, kind: Kind) -> dict[str, PluginInfo]:
    plugin_kind = KINDS[kind]
    consume = functools.partial(_checked_entries, plugin_kind)
    found: dict[str, PluginInfo] = {}
    for source, entries in reversed(list(host.call(plugin_kind.hook, consume))):  # list the built-in ones first
        for entry in entries:
            info = PluginInfo(kind, entry, source, tuple(name for name in entry.requires if not _installed(name)))
            first = found.setdefault(entry.name, info)
            if first is not info:
                raise PluginError(
                    f"Two plugins provide the {kind} {entry.name!r}: {_location(first)} and {_location(info)}. "
                    "Uninstall one of them."
                )
    return found


def _location(info: PluginInfo) -> str:
    return f"{info.source} (entry point {info.source.entry_point!r})"


def _checked_entries(plugin_kind: PluginKind, results: list[Iterable[PluginEntry]]) -> list[PluginEntry]:
    """Collect the entries from the iterables that a hook returned, and check each."""
    entries = [entry for result in results for entry in result]
    for entry in entries:
        _check_entry(plugin_kind, entry)
    return entries


def _check_entry(plugin_kind: PluginKind, entry: PluginEntry) -> None:
    if not isinstance(entry, plugin_kind.entry):
        raise TypeError(f"expected {plugin_kind.entry.__name__} objects, got {entry!r}")
    if not isinstance(entry.name, str) or not re.fullmatch(r"\S+", entry.name):
        raise ValueError(f"a name must be one word, got {entry.name!r}")
    if not re.fullmatch(r"[\w.]+:[\w.]+", entry.factory):
        raise ValueError(f"a factory must be 'package.module:Class', got {entry.factory!r} for {entry.name!r}")
    if isinstance(entry.requires, str):
        raise TypeError(f"requires must be a tuple of import names, got text {entry.requires!r} for {entry.name!r}")
    if isinstance(entry, CalibratorEntry):
        suffixes: object = entry.artifact_suffixes
        if not isinstance(suffixes, tuple) or not all(isinstance(suffix, str) and suffix for suffix in suffixes):
            raise TypeError(f"artifact_suffixes must be a tuple of name endings, got {suffixes!r} for {entry.name!r}")
    if not is_dataclass(entry.options) or not isinstance(entry.options, type):
        raise TypeError(f"options must be a dataclass, got {entry.options!r} for {entry.name!r}")
    describe_options(entry.options)  # raises here, attributed to the plugin, if an annotation cannot be resolved


def _installed(name: str) -> bool:
    """Return whether a module can be found, without importing it or its parents."""
    if name in sys.modules:
        return sys.modules[name] is not None
    top, *children = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # in sys.modules without a spec: something put it there, so it can be imported
        return True
    for position, _ in enumerate(children, start=2):
        if spec is None or spec.submodule_search_locations is None:
            return False
        path = ".".join(name.split(".")[:position])
        spec = importlib.machinery.PathFinder.find_spec(path, spec.submodule_search_locations)
    return spec is not None


def _import_factory(info: PluginInfo) -> Callable[[Any], Any]:
    try:
        factory = pkgutil.resolve_name(info.entry.factory)
    except Exception as error:
        raise PluginError(
            f"The {info} cannot be loaded from {info.entry.factory}: {type(error).__name__}: {error}. "
            f"Reinstall or fix {info.distribution}."
        ) from error
    return factory  # type: ignore[no-any-return]  # whatever object the plugin names


def _spec_or_none(result: object) -> InputSpec | None:
    if result is None or isinstance(result, InputSpec):
        return result
    raise TypeError(f"expected an InputSpec or None, got {result!r}")


DEFAULT_GENERATOR = "bns"
"""The generator that won the comparison in docs/benchmarks.md."""
