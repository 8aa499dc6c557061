"""Reconstruction as a step between calibration and conversion or training, for `quantize` and `finetune`."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dfq_plugins.host.options import parse_options
from dfq_plugins.inputs import count, joined, leaves, rows
from dfq_plugins.network.digest import model_digest
from dfq_plugins.reconstruction.options import ReconstructionOptions
from dfq_plugins.storage.canonical_json import sha256_of
from dfq_plugins.storage.files import create_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import nn

    from dfq_plugins.reconstruction.run import ReconstructedBlock
    from dfq_plugins.types import Calibrator, Inputs, ProgressEvent, Specification

FOLDER = "reconstruct"
"""Subfolder of the work folder for the finished blocks."""


def reconstruction_options(
    given: bool | Mapping[str, object] | ReconstructionOptions,
) -> ReconstructionOptions | None:
    """Return the settings of a reconstruction; None if there is to be none.

    Raises:
        UsageError: a setting is unknown or invalid.

    >>> reconstruction_options(False), reconstruction_options({"steps": "3"}).steps
    (None, 3)
    """
    if isinstance(given, bool):
        return ReconstructionOptions() if given else None
    return parse_options(ReconstructionOptions, given, owner="the reconstruction")


class ReconstructionStep:
    """Reconstructs a network after its calibration; does nothing without settings.

    Args:
        framework: the calibrator.
        prepared: the network that it prepared, not yet calibrated.
        options: settings; None for no reconstruction.

    Raises:
        UsageError: the framework cannot reconstruct.
    """

    def __init__(self, framework: Calibrator, prepared: nn.Module, options: ReconstructionOptions | None) -> None:
        self._framework, self._prepared, self._options = framework, prepared, options
        self._reference = None if options is None else copy.deepcopy(prepared)
        if self._reference is not None:
            framework.quantized_view(self._reference)

    def run(
        self,
        batches: Iterable[Inputs],
        spec: Specification,
        report: Callable[[ProgressEvent], None],
        work: Path | None = None,
        about: object = None,
    ) -> tuple[ReconstructedBlock, ...]:
        """Reconstruct the calibrated network in place, and return what became of its blocks.

        Args:
            batches: the data.
            spec: the network's inputs.
            report: called with progress events.
            work: folder for finished blocks; None stores none.
            about: everything else that the result depends on, for the identity of a run.

        Raises:
            ModelError: the network cannot be traced.
            DataError: the folder holds blocks of another run.
        """
        if self._options is None or self._reference is None:
            return ()
        from dfq_plugins.reconstruction.checkpoints import BlockStates  # noqa: PLC0415  only where it is wanted
        from dfq_plugins.reconstruction.run import reconstruct  # noqa: PLC0415  as above

        inputs = _first(batches, self._options.samples)
        states = None
        if work is not None:
            create_folder(work / FOLDER)
            states = BlockStates(work / FOLDER, _identity(self._reference, inputs, self._options, about))
        return reconstruct(
            self._framework,
            self._prepared,
            self._reference,
            inputs,
            spec,
            self._options,
            report=report,
            states=states,
        )


def _identity(reference: nn.Module, inputs: Inputs, options: ReconstructionOptions, about: object) -> str:
    """Return the digest of everything that the result depends on; the time budget may change in between."""
    values = hashlib.sha256()
    for tensor in leaves(inputs):
        values.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    settings = asdict(replace(options, max_seconds=None))
    return sha256_of([model_digest(reference), values.hexdigest(), settings, about])


def _first(batches: Iterable[Inputs], samples: int) -> Any:
    """Return the first samples of the data."""
    found: list[Any] = []
    for batch in batches:
        found.append(batch)
        if sum(map(count, found)) >= samples:
            break
    return rows(joined(found), slice(samples))
