"""Artifacts: written under a temporary name, run, compared with the torch model, and only then renamed.

A file that fails its check is kept as `<name>.rejected`; the other artifacts and the model are not affected.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import ArtifactError, DataError, DfqError
from dfq_plugins.network.outputs import class_scores
from dfq_plugins.quantization.environment import environment_fault
from dfq_plugins.quantization.onnx_exporter import quiet_exporter
from dfq_plugins.storage.files import TEMPORARY_SUFFIX
from dfq_plugins.types import Artifact, Check, RejectedArtifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import Calibrator, InputSpec

REJECTED_SUFFIX = ".rejected"
"""Suffix of a file that failed its check."""

_UNWRITABLE = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTEMPTY,
    )
)


class RejectedArtifactsError(ArtifactError):
    """At least one artifact of an export was rejected.

    Args:
        message: description of the problem.
        rejected: the rejected artifacts.
        artifacts: artifacts of the same export that passed.
    """

    def __init__(
        self, message: str, *, rejected: Iterable[RejectedArtifact], artifacts: Iterable[Artifact] = ()
    ) -> None:
        self.rejected, self.artifacts = tuple(rejected), tuple(artifacts)
        super().__init__(message, faults=[fault for artifact in self.rejected for fault in artifact.faults])


@dataclass(frozen=True)
class ArtifactRecipe:
    """How to create one artifact.

    Args:
        path: final path; the folder is created if it does not exist.
        format: human-readable name of the format.
        write: writes the file to the temporary path that it is given.
        check: runs that file, compares it with the torch model, and returns the checks that it passed. It raises an
            `ArtifactError` with the faults if the file fails.
    """

    path: Path
    format: str
    write: Callable[[Path], object]
    check: Callable[[Path], tuple[Check, ...]]


def write_artifacts(recipes: Iterable[ArtifactRecipe]) -> tuple[Artifact, ...]:
    """Create each artifact, even if an earlier one failed.

    Raises:
        RejectedArtifactsError: at least one was rejected; the error names all of them, and those that passed.
        DataError: the folder cannot be written.
    """
    passed, failed = [], []
    for recipe in recipes:
        try:
            passed.append(write_artifact(recipe))
        except RejectedArtifactsError as error:
            failed.append(error)
    if failed:
        message = " ".join(map(str, failed))
        rejected = [artifact for error in failed for artifact in error.rejected]
        raise RejectedArtifactsError(message, rejected=rejected, artifacts=passed) from failed[0]
    return tuple(passed)


def write_artifact(recipe: ArtifactRecipe) -> Artifact:
    """Write a file under a temporary name, check it, and rename it.

    An existing file with that name is kept until the new one has passed.

    Raises:
        RejectedArtifactsError: the file cannot be written in its format, or failed its check and is now
            `<name>.rejected`.
        DataError: the folder cannot be written.
    """
    path = recipe.path
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        with quiet_exporter():
            recipe.write(temporary)
        checks = recipe.check(temporary)
        temporary.replace(path)
        with contextlib.suppress(OSError):
            path.with_name(path.name + REJECTED_SUFFIX).unlink()  # of an earlier export
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise DataError(
                f"{path.parent} must be a writable folder with free space: {error}. Give another folder."
            ) from error
        raise _rejected(recipe, temporary, error) from error
    finally:
        with contextlib.suppress(OSError):  # if the folder does not exist, the first error says so
            temporary.unlink(missing_ok=True)
    return Artifact(path, recipe.format, path.stat().st_size, checks)


def _rejected(recipe: ArtifactRecipe, temporary: Path, error: Exception) -> RejectedArtifactsError:
    """Return the error that rejects a file, and keep the file if anything was written."""
    kept = None
    with contextlib.suppress(OSError):
        if temporary.stat().st_size:
            kept = temporary.replace(recipe.path.with_name(recipe.path.name + REJECTED_SUFFIX))
    fault = environment_fault(error)
    if fault is not None:
        reason = f"{recipe.path.name} could not be created and checked on this machine: {fault}"
    elif isinstance(error, DfqError):
        reason = str(error)
    else:
        reason = (
            f"This model has no {recipe.format} form that runs: {type(error).__name__}: {error}. Rewrite the operation "
            "that the error names, or use the converted model in Python without exporting it."
        )
    where = "" if kept is None else f" The file was kept as {kept.name}."
    faults = error.faults if isinstance(error, ArtifactError) else ()
    artifact = RejectedArtifact(recipe.path.name, recipe.format, reason, faults, kept)
    return RejectedArtifactsError(reason + where, rejected=(artifact,))


def export_all(
    calibrator: Calibrator, converted: nn.Module, spec: InputSpec, folder: Path
) -> tuple[tuple[Artifact, ...], tuple[RejectedArtifact, ...]]:
    """Export a quantized model so that a failure never loses it: return passed and rejected artifacts.

    Args:
        calibrator: the framework's calibrator.
        converted: the model returned by its `convert`.
        spec: the network's input.
        folder: folder for the artifacts.
    """
    try:
        return calibrator.export(converted, spec, folder), ()
    except RejectedArtifactsError as error:
        return error.artifacts, error.rejected
    except Exception as error:  # noqa: BLE001  the model may have been trained for hours
        reason = environment_fault(error) or (
            str(error) if isinstance(error, DfqError) else f"{type(error).__name__}: {error}"
        )
        faults = error.faults if isinstance(error, ArtifactError) else ()
        return (), (RejectedArtifact("", "", reason, faults),)


def require_folder(folder: Path) -> None:
    """Reject a folder that cannot be created, before any work is done.

    Raises:
        DataError: the folder is a file, or one of its parents is.
    """
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise DataError(f"{folder} must be a writable folder, but {existing} is a file. Give another folder.")


@dataclass(frozen=True)
class OutputDifference:
    """How one output of an artifact compares with that of the torch model.

    Args:
        samples: number of samples.
        same_class: share of samples, or of positions, with the same top-1 class; None if it does not hold class logits.
            Rows with NaN or infinity count as different.
        largest: largest difference; NaN if a value of either is not finite.
        deviation: mean difference, as a share of the standard deviation of the expected outputs; NaN likewise.
    """

    samples: int
    same_class: float | None
    largest: float
    deviation: float

    def __str__(self) -> str:
        agreement = "" if self.same_class is None else f"top-1 agreement {self.same_class:.1%}, "
        return (
            f"{self.samples} samples: {agreement}maximum difference {self.largest:.3g}, mean "
            f"{self.deviation:.2%} of the outputs' standard deviation"
        )


def compare(expected: Any, found: Any, num_classes: int | None) -> OutputDifference:
    """Compare one output as users see it: by class for classifiers, and by deviation.

    Args:
        expected: output of the torch model, `(samples, ...)`: a tensor or an array.
        found: output of the artifact.
        num_classes: number of classes; None or 0 if the network is not known to be a classifier.

    Raises:
        ArtifactError: the shapes differ.

    >>> str(compare(torch.eye(4), torch.eye(4) * 0.5, num_classes=4))
    "4 samples: top-1 agreement 100.0%, maximum difference 0.5, mean 28.87% of the outputs' standard deviation"
    """
    first, second = torch.as_tensor(expected).float(), torch.as_tensor(found).float()
    if first.shape != second.shape:
        raise ArtifactError(
            f"An artifact must return what the torch model does, {tuple(first.shape)}, but this one returns "
            f"{tuple(second.shape)}. Please report the model.",
            faults=(f"shape {tuple(second.shape)} instead of {tuple(first.shape)}",),
        )
    difference = (first - second).abs()
    spread = max(first.std(correction=0).item(), torch.finfo(torch.float32).tiny)
    ours, theirs = class_scores(first, num_classes), class_scores(second, num_classes)
    same = None
    if ours is not None and theirs is not None:
        finite = (ours.isfinite() & theirs.isfinite()).all(1)
        same = ((ours.argmax(1) == theirs.argmax(1)) & finite).float().mean().item()
    return OutputDifference(len(first), same, difference.max().item(), difference.mean().item() / spread)
