"""Registry: building what stands behind a name, and the listeners of a run."""

from __future__ import annotations

import logging
import sys
import types
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from annotated_types import Gt

from dfq_plugins.errors import PluginError, UsageError
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.host.registry import Registry, build_registry
from dfq_plugins.listeners import Broadcast
from dfq_plugins.listeners.log import LogListener, LogOptions
from dfq_plugins.types import (
    Batch,
    Calibrator,
    CalibratorEntry,
    DataGenerator,
    GeneratorEntry,
    ProgressEvent,
    ProgressListenerEntry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

EVENT = ProgressEvent("synthesize", 1, 4, {"loss": 0.5})


@dataclass(frozen=True)
class GanOptions:
    steps: Annotated[int, Gt(0)] = field(default=10, metadata={"help": "optimization steps"})


@dataclass(frozen=True)
class OtherOptions:
    steps: int = 1


class Gan(DataGenerator):
    def __init__(self, options: GanOptions) -> None:
        self.options = options

    def generate(self, *_: Any, **__: Any) -> Iterator[Batch]:
        return iter(())


class Half(Calibrator):
    """Lacks everything."""


class Listener:
    def __init__(self, _options: object) -> None:
        self.heard: list[ProgressEvent] = []

    def __call__(self, event: ProgressEvent) -> None:
        self.heard.append(event)


def fail(_argument: object) -> None:
    raise RuntimeError("no such luck")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    module = types.ModuleType("fake_plugin")

    @hookimpl
    def dfq_generators() -> Iterable[GeneratorEntry]:
        yield GeneratorEntry("gan", "a generator", "fake_plugin:Gan", options=GanOptions)
        yield GeneratorEntry("lost", "", "fake_plugin:Lost")
        yield GeneratorEntry("gone", "", "no_such_module:Lost")
        yield GeneratorEntry("failing", "", "fake_plugin:fail")
        yield GeneratorEntry("empty", "", "fake_plugin:Listener")

    @hookimpl
    def dfq_calibrators() -> Iterable[CalibratorEntry]:
        return [CalibratorEntry("half", "", "fake_plugin:Half")]

    @hookimpl
    def dfq_progress_listeners() -> Iterable[ProgressListenerEntry]:
        yield ProgressListenerEntry("quiet", "", "fake_plugin:Listener")
        yield ProgressListenerEntry("unbuildable", "", "fake_plugin:fail")
        yield ProgressListenerEntry("absent", "", "fake_plugin:Listener", requires=("no_such_module",))

    vars(module).update(
        Gan=Gan,
        Half=Half,
        Listener=Listener,
        fail=fail,
        dfq_generators=dfq_generators,
        dfq_calibrators=dfq_calibrators,
        dfq_progress_listeners=dfq_progress_listeners,
    )
    monkeypatch.setitem(sys.modules, "fake_plugin", module)
    return build_registry(entry_points=[EntryPoint("fake", "fake_plugin", "dfq_plugins")])


def built(registry: Registry, options: object) -> Any:
    return registry.create("generator", "gan", options)


def test_entries_without_a_distribution_are_named_by_their_module(registry: Registry) -> None:
    assert str(registry.generators["gan"]) == "generator 'gan' from module fake_plugin"


def test_mappings_cannot_be_changed(registry: Registry) -> None:
    with pytest.raises(TypeError):
        registry.generators["new"] = registry.generators["gan"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "expected"),
    [(None, 10), ({}, 10), ({"steps": 3}, 3), ({"steps": "3"}, 3), (GanOptions(7), 7)],
)
def test_create_takes_options_as_mapping_text_or_record(registry: Registry, options: object, expected: int) -> None:
    assert built(registry, options).options == GanOptions(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, r"Unknown option 'step' of generator 'gan'. Did you mean 'steps'\? Valid options: steps."),
        ({"steps": 0}, "Option 'steps' of generator 'gan' cannot be 0: input should be greater than 0"),
        (GanOptions(-1), "Option 'steps' of generator 'gan' cannot be -1"),
        (OtherOptions(), r"The options of generator 'gan' must be a mapping or a GanOptions, got OtherOptions"),
    ],
)
def test_create_refuses_wrong_options(registry: Registry, options: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(registry, options)


def test_options_are_refused_where_there_are_none(registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"Unknown option 'steps' of calibrator 'half'. It has no options."):
        registry.create("calibrator", "half", {"steps": 1})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lost", "generator 'lost' from module fake_plugin cannot be loaded from fake_plugin:Lost: AttributeError"),
        ("gone", "cannot be loaded from no_such_module:Lost: ModuleNotFoundError.*Reinstall or fix"),
        (
            "empty",
            r"generator 'empty' from module fake_plugin builds a Listener, which is not a dfq_plugins.types.DataGen",
        ),
    ],
)
def test_create_says_which_plugin_cannot_be_built(registry: Registry, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        registry.create("generator", name)


def test_create_names_the_methods_that_a_calibrator_lacks(registry: Registry) -> None:
    with pytest.raises(PluginError, match=r"builds a Half without calibrate, convert, describe, export, prepare\(\)"):
        registry.create("calibrator", "half")


def test_an_error_while_building_is_attributed(registry: Registry) -> None:
    with pytest.raises(RuntimeError, match="no such luck") as caught:
        registry.create("generator", "failing")
    assert caught.value.__notes__ == ["in generator 'failing' from module fake_plugin"]


def test_a_listener_that_raises_is_logged_once_dropped_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[ProgressEvent] = []
    listeners: list[Callable[[ProgressEvent], Any]] = [heard.append, fail, heard.append]
    broadcast = Broadcast(listeners)
    with caplog.at_level(logging.ERROR):
        broadcast(EVENT)
        broadcast(EVENT)
    assert heard == [EVENT] * 4
    (record,) = caplog.records
    assert record.getMessage() == "Dropped the listener 'fail' because it raised an error; the run continues."
    assert record.exc_info is not None
    assert broadcast.names == ("listener 'list.append'", "listener 'list.append'")


def test_ctrl_c_in_a_listener_is_not_swallowed() -> None:
    def interrupt(_event: ProgressEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Broadcast([interrupt])(EVENT)


def test_every_ready_listener_of_the_registry_hears_the_run(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    broadcast = Broadcast(registry=registry)
    assert broadcast.names == ("listener 'quiet' from module fake_plugin",)
    assert "Dropped the listener 'unbuildable' from module fake_plugin" in caplog.text
    broadcast(EVENT)


def test_the_built_in_listener_comes_through_the_public_hook() -> None:
    plugin = EntryPoint("builtin-listeners", "dfq_plugins.listeners.plugin", "dfq_plugins")
    registry = build_registry(entry_points=[plugin], strict=True)
    assert isinstance(registry.create("listener", "log", {"interval": "0"}), LogListener)


def test_the_log_listener_keeps_its_interval(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 1.0, 6.0, 7.0, 7.5])
    listener = LogListener(LogOptions(interval=5), clock=lambda: next(times))
    with caplog.at_level(logging.INFO, logger="dfq_plugins.progress"):
        for completed in (1, 2, 3, 4):
            listener(ProgressEvent("synthesize", completed, 4, {"loss": 0.5}))
        listener(ProgressEvent("calibrate", 1, 2))
    assert [record.getMessage() for record in caplog.records] == [
        "synthesize: 1 of 4, loss 0.5",
        "synthesize: 3 of 4, loss 0.5",
        "synthesize: 4 of 4, loss 0.5",
        "calibrate: 1 of 2",
    ]
