"""The hooks that register generators, calibrators and listeners, including the built-in ones.

Hooks only register: they return small frozen records. The host imports the object that a record names when it is used.
A complete plugin is a module named by an entry point in the group ``dfq_plugins``::

    # pyproject.toml
    [project.entry-points.dfq_plugins]
    my-noise = "my_noise.plugin"

    # my_noise/plugin.py (imports no torch)
    from dfq_plugins import hookimpl
    from dfq_plugins.types import GeneratorEntry

    @hookimpl
    def dfq_generators():
        yield GeneratorEntry("uniform", "Uniform noise in the valid range", "my_noise.uniform:UniformGenerator")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from dfq_plugins.types import (
        CalibratorEntry,
        GeneratorEntry,
        InputSpec,
        LearningGeneratorEntry,
        ProgressListenerEntry,
    )

PROJECT = "dfq_plugins"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def dfq_generators() -> Iterable[GeneratorEntry]:  # type: ignore[empty-body]
    """Return the data generators that this plugin provides; see `dfq_plugins.types.DataGenerator`."""


@hookspec
def dfq_learning_generators() -> Iterable[LearningGeneratorEntry]:  # type: ignore[empty-body]
    """Return the generators that learn from a student; see `dfq_plugins.types.LearningGenerator`."""


@hookspec
def dfq_calibrators() -> Iterable[CalibratorEntry]:  # type: ignore[empty-body]
    """Return the calibrators that this plugin provides; see `dfq_plugins.types.Calibrator`."""


@hookspec
def dfq_progress_listeners() -> Iterable[ProgressListenerEntry]:  # type: ignore[empty-body]
    """Return the progress listeners that this plugin provides. Every ready listener sees every run."""


@hookspec(firstresult=True)
def dfq_infer_input_spec(model: nn.Module) -> InputSpec | None:
    """Return the input specification of a model if this plugin recognizes it, else None."""
