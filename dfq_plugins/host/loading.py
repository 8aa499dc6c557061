"""Loads plugins from the entry-point group `dfq_plugins` and calls their hooks, one plugin at a time.

A plugin that cannot be imported, or whose hook fails, is set aside and never stops the others. A plugin whose hooks do
not match the hook specifications is an error, because it would otherwise be ignored silently.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from dfq_plugins import hookspecs
from dfq_plugins.errors import DfqWarning, PluginError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.metadata import EntryPoint

STRICT_VARIABLE = "DFQ_STRICT_PLUGINS"
"""Environment variable for plugin authors and their CI: 1 turns every broken plugin into an error."""

OWN_DISTRIBUTION = "dfq-plugins"


class PluginWarning(DfqWarning):
    """A plugin was set aside because it is broken."""


@dataclass(frozen=True)
class PluginSource:
    """The entry point and distribution that provide a plugin.

    >>> str(PluginSource("gan", "dfq-gan", "0.2"))
    'dfq-gan 0.2'
    """

    entry_point: str
    distribution: str
    version: str

    @classmethod
    def of(cls, entry_point: EntryPoint) -> PluginSource:
        """Read the name and version from the metadata of the entry point's distribution."""
        if entry_point.dist is None:
            return cls(entry_point.name, f"module {entry_point.value}", "")
        metadata = entry_point.dist.metadata
        # get_all: depending on the Python version, reading a missing key returns None, warns or raises.
        name = metadata.get_all("Name") or [f"module {entry_point.value}"]
        return cls(entry_point.name, name[0], (metadata.get_all("Version") or [""])[0])

    @property
    def key(self) -> str:
        """The name to register under; two distributions may use the same entry-point name."""
        return f"{self.distribution}:{self.entry_point}"

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was set aside, with the reason."""

    source: PluginSource
    error: str

    @property
    def entry_point(self) -> str:
        """Name of the entry point."""
        return self.source.entry_point

    @property
    def distribution(self) -> str:
        """Name of the distribution that provides the plugin."""
        return self.source.distribution

    @property
    def version(self) -> str:
        """Version of that distribution."""
        return self.source.version

    def __str__(self) -> str:
        return f"plugin {self.entry_point!r} of {self.source}: {self.error}"


class PluginHost:
    """The plugins of one pluggy manager with their sources, and the plugins that were set aside.

    Args:
        entry_points: the entry points to load; None loads all installed ones of the group.
        strict: raise for a broken plugin; None reads the environment variable `DFQ_STRICT_PLUGINS`.

    Raises:
        PluginError: a hook is misspelled or takes arguments that its specification lacks, two entry points name one
            module, or a plugin is broken and the host is strict.
    """

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None, *, strict: bool | None = None) -> None:
        self.strict = _strict_from_environment() if strict is None else strict
        self.broken: list[BrokenPlugin] = []
        self._origins: dict[str, PluginSource] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for entry_point in _in_order(installed_entry_points() if entry_points is None else entry_points):
            self._load(entry_point)
        self._check_hook_names()

    def call(self, hook: str, consume: Callable[[Any], Any], **arguments: Any) -> Iterator[tuple[PluginSource, Any]]:
        """Call one hook plugin by plugin; yield each source with `consume(result)`.

        If a hook or the iterator that it returns raises, only that plugin is set aside. Plugins from other
        distributions come first, because pluggy calls the last registered plugin first.
        """
        plugins = self._manager.get_plugins()
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            caller = self._manager.subset_hook_caller(hook, plugins - {implementation.plugin})
            source = self._origins[implementation.plugin_name]
            try:
                result = consume(caller(**arguments))
            except Exception as error:  # noqa: BLE001  a plugin's code may raise anything
                self.set_aside(source, f"{hook} failed with {type(error).__name__}: {error}", error)
            else:
                yield source, result

    def set_aside(self, source: PluginSource, reason: str, cause: BaseException | None = None) -> None:
        """Record a broken plugin and warn about it, once per plugin and reason.

        Raises:
            PluginError: the host is strict.
        """
        broken = BrokenPlugin(source, reason)
        if self.strict:
            raise PluginError(f"Broken {broken}. Fix or uninstall it, or unset {STRICT_VARIABLE}.") from cause
        if broken not in self.broken:
            self.broken.append(broken)
            warnings.warn(f"Set aside the broken {broken}. Run `dfq plugins` for details.", PluginWarning, stacklevel=3)

    def _load(self, entry_point: EntryPoint) -> None:
        source = PluginSource.of(entry_point)
        try:
            plugin = entry_point.load()
            hash(plugin)  # pluggy keeps plugins in sets
        except (Exception, SystemExit) as error:  # noqa: BLE001  a module may raise anything, or call sys.exit
            self.set_aside(source, f"{type(error).__name__}: {error}", error)
            return
        self._refuse_second_registration(plugin, source)
        try:
            self._manager.register(plugin, name=source.key)
        except pluggy.PluginValidationError as error:
            raise _invalid_hook(source, error) from error
        self._origins[source.key] = source
        if not self._manager.get_hookcallers(plugin):
            self.set_aside(
                source, f"{entry_point.value} has no hooks. Decorate its functions with dfq_plugins.hookimpl"
            )

    def _refuse_second_registration(self, plugin: object, source: PluginSource) -> None:
        first = self._manager.get_name(plugin) or (source.key if self._manager.has_plugin(source.key) else None)
        if first is not None:
            both = [f"{which} (entry point {which.entry_point!r})" for which in (self._origins[first], source)]
            raise PluginError(f"Two entry points name the same plugin: {both[0]} and {both[1]}. Uninstall one of them.")

    def _check_hook_names(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            name = self._manager.get_name(error.plugin)
            raise _invalid_hook(self._origins[str(name)], error) from error


def installed_entry_points() -> tuple[EntryPoint, ...]:
    """Return every installed entry point of the group, from all distributions on the path."""
    return tuple(importlib.metadata.entry_points(group=hookspecs.PROJECT))


def _in_order(entry_points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Sort the entry points, so that their order on disk does not matter; ours come first and are called last."""

    def rank(entry_point: EntryPoint) -> tuple[bool, str]:
        source = PluginSource.of(entry_point)
        return source.distribution != OWN_DISTRIBUTION, source.key

    return sorted(entry_points, key=rank)


def _invalid_hook(source: PluginSource, error: pluggy.PluginValidationError) -> PluginError:
    reason = " ".join(str(error).split())
    known = ", ".join(name for name in dir(hookspecs) if name.startswith("dfq_"))
    return PluginError(
        f"Plugin {source.entry_point!r} of {source} has an invalid hook: {reason}. "
        f"Valid hooks are {known}. Fix the plugin or uninstall {source.distribution}."
    )


def _strict_from_environment() -> bool:
    return os.environ.get(STRICT_VARIABLE, "") not in {"", "0"}
