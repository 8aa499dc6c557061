"""What every training on a teacher's answers begins with: its data, its generator, its work folder and its identity."""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dfq_plugins.calibration_data import BATCH_SIZE
from dfq_plugins.dataset import SyntheticDataset
from dfq_plugins.digest import model_digest
from dfq_plugins.distillation.batches import Examples
from dfq_plugins.errors import DataError, DfqWarning
from dfq_plugins.locks import FolderLock
from dfq_plugins.manifest import jsonable
from dfq_plugins.storage import create_folder, remove_temporary_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from dfq_plugins.calibration_data import CalibrationData, InputBatches
    from dfq_plugins.distillation.loss import DistillationLoss
    from dfq_plugins.distillation.options import DistillationOptions
    from dfq_plugins.distillation.ranks import Ranks
    from dfq_plugins.types import InputSpec, LearningGenerator

_SHOWN_DIGITS = 12


class DataOriginWarning(DfqWarning):
    """The data was synthesised from another model than the one that is fine-tuned on it."""


def check_origin(data: object, teacher: nn.Module, *, strict: bool) -> None:
    """Warn of a synthetic data set that was made from another model, or refuse it.

    Raises:
        DataError: it was, and `strict` is set.
    """
    if not isinstance(data, SyntheticDataset):
        return
    theirs, ours = data.manifest.model_digest, model_digest(teacher)
    if theirs == ours:
        return
    message = (
        f"The data in {data.folder} was made from another model: digest {theirs[:_SHOWN_DIGITS]} there, "
        f"{ours[:_SHOWN_DIGITS]} of the model given."
    )
    if strict:
        raise DataError(f"{message} Synthesise data from this model, or do without strict.")
    warnings.warn(
        f"{message} Its inputs fit that one's statistics. Synthesise data from this model.",
        DataOriginWarning,
        stacklevel=3,
    )


def run_identity(
    teacher: nn.Module, parts: tuple[Examples, Examples], settings: DistillationOptions, about: object
) -> str:
    """Return the digest of everything that the result of a training depends on, in hexadecimal.

    The time budget is left out: a run may be resumed with another one.
    """
    training = asdict(replace(settings, max_seconds=None))
    told = jsonable([model_digest(teacher), [part.digest for part in parts], training, about])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def gathered(data: CalibrationData, samples: InputBatches) -> Examples:
    """Return all samples in memory, with the labels of a synthetic data set."""
    if isinstance(data, SyntheticDataset) and data.manifest.labels != "none":
        batches = list(data.loader(batch_size=BATCH_SIZE))
        return Examples(torch.cat([batch.inputs for batch in batches]), torch.cat([batch.labels for batch in batches]))
    return Examples(torch.cat(list(samples)))


def answered(examples: Examples, loss: DistillationLoss, settings: DistillationOptions) -> Examples:
    """Return the examples with the teacher's answers where no step will ask the teacher anew."""
    if settings.augments or settings.compares_features:
        return examples
    answers = torch.cat([loss.teach(batch).cpu() for batch in torch.split(examples.inputs, settings.batch_size)])
    return replace(examples, answers=answers)


def check_generator(maker: LearningGenerator | None, teacher: nn.Module, spec: InputSpec) -> None:
    """Let a generator that can tell refuse the model before anything is calibrated."""
    check = getattr(maker, "check_supported", None)
    if check is not None:
        check(teacher, spec)


@contextmanager
def work_folder(work: Path | str | None, ranks: Ranks) -> Iterator[Path | None]:
    """Create the work folder and keep other runs out of it meanwhile."""
    if work is None:
        yield None
        return
    folder = Path(work).absolute()
    create_folder(folder)
    lock = FolderLock(folder)
    if ranks.leads:  # the other processes only read
        lock.acquire()
        remove_temporary_files(folder)
    try:
        yield folder
    finally:
        lock.release()
