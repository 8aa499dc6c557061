"""The kinds of plugins, the record of one registered plugin, and the attribution of errors to plugins."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeVar

from dfq_plugins.types import (
    Calibrator,
    CalibratorEntry,
    DataGenerator,
    GeneratorEntry,
    LearningGenerator,
    LearningGeneratorEntry,
    PluginEntry,
    ProgressListenerEntry,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dfq_plugins.host.loading import PluginSource

Item = TypeVar("Item")
Kind = Literal["generator", "learning generator", "calibrator", "listener"]


@dataclass(frozen=True)
class PluginKind:
    """Requirements for one kind of plugin: its hook, the entry that the hook returns, and the base of the object."""

    hook: str
    entry: type[PluginEntry]
    base: type[object]


KINDS: Mapping[Kind, PluginKind] = MappingProxyType(
    {
        "generator": PluginKind("dfq_generators", GeneratorEntry, DataGenerator),
        "learning generator": PluginKind("dfq_learning_generators", LearningGeneratorEntry, LearningGenerator),
        "calibrator": PluginKind("dfq_calibrators", CalibratorEntry, Calibrator),
        "listener": PluginKind("dfq_progress_listeners", ProgressListenerEntry, object),
    }
)


@dataclass(frozen=True)
class PluginInfo:
    """One generator, calibrator or listener and its source.

    Args:
        kind: its kind.
        entry: the entry that its hook returned.
        source: the distribution and entry point that provide it.
        missing: required import names that are not installed.
    """

    kind: Kind
    entry: PluginEntry
    source: PluginSource
    missing: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        """Name of the distribution that provides it."""
        return self.source.distribution

    @property
    def version(self) -> str:
        """Version of that distribution."""
        return self.source.version

    @property
    def state(self) -> Literal["ready", "unavailable"]:
        """Whether all its requirements are installed."""
        return "unavailable" if self.missing else "ready"

    @property
    def install_line(self) -> str:
        """The command that installs the missing requirements; empty if there are none."""
        if not self.missing:
            return ""
        return f'pip install "{self.entry.install}"' if self.entry.install else f"pip install {' '.join(self.missing)}"

    def __str__(self) -> str:
        return f"{self.kind} {self.entry.name!r} from {self.source}"


@contextmanager
def attributed(info: PluginInfo) -> Iterator[None]:
    """Add a note such as `in generator 'gan' from dfq-gan 0.2` to an exception that leaves the block."""
    try:
        yield
    except Exception as error:
        note = f"in {info}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def attributed_iterator(items: Iterable[Item], info: PluginInfo) -> Iterator[Item]:
    """Yield the items of a plugin's iterator; attribute errors that it raises, but not those of the consumer."""
    iterator = iter(items)
    try:
        while True:
            with attributed(info):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
