"""The state of a training run, in memory and in its work folder, so that a run can stop at any time and resume exactly.

A checkpoint consists of two files: `checkpoint-<step>.safetensors` with the tensors, and `checkpoint.json`, which names
it. The JSON file is renamed into place last, so it always names a complete file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from dfq_plugins.distillation.history import TrainingPoint
from dfq_plugins.errors import DataError
from dfq_plugins.storage.canonical_json import short_digest
from dfq_plugins.storage.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

CHECKPOINT_FILE = "checkpoint.json"
FORMAT_VERSION = 1

State = dict[str, torch.Tensor]


def capture(model: nn.Module) -> State:
    """Return copies of all parameters and buffers, including those that a framework omits from its state dictionary."""
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.detach().clone().contiguous() for name, tensor in named}


@torch.no_grad()
def restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore captured values in place.

    `load_state_dict` is not used: frameworks override it, and some overrides assume a GPU.

    Raises:
        DataError: the state belongs to another network.
    """
    present = dict(chain(model.named_parameters(), model.named_buffers()))
    wrong = [name for name in present if name not in state or state[name].shape != present[name].shape]
    if wrong:
        raise DataError(
            f"The checkpoint belongs to another network: {wrong[0]!r} does not match. Choose another work folder, or "
            "delete this one."
        )
    for name, tensor in present.items():
        tensor.copy_(state[name])


def capture_optimizer(optimizer: torch.optim.Optimizer) -> State:
    """Return copies of an optimizer's moments, as `<parameter>.<moment>`."""
    return {
        f"{index}.{key}": value.detach().clone()
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Restore captured moments."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


@dataclass(frozen=True)
class Checkpoint:
    """The saved state of a run.

    Args:
        identity: digest of everything that the result depends on.
        step: completed steps.
        seconds: seconds of training so far.
        complete: whether the run is finished.
        history: points of the training curves.
        tensors: groups of tensors by name: student, best (empty if the student is the best), optimizer, source.
    """

    identity: str
    step: int
    seconds: float
    complete: bool
    history: tuple[TrainingPoint, ...]
    tensors: Mapping[str, State]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, and remove the previous one.

    Raises:
        DataError: the folder cannot be written; the previous checkpoint stays intact.
    """
    name = f"checkpoint-{checkpoint.step:08d}.safetensors"
    flat = {
        f"{group}/{key}": value.cpu() for group, state in checkpoint.tensors.items() for key, value in state.items()
    }
    data = safetensors.torch.save(flat)
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "identity": checkpoint.identity,
        "step": checkpoint.step,
        "seconds": checkpoint.seconds,
        "complete": checkpoint.complete,
        "tensors": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "history": [asdict(point) for point in checkpoint.history],
    }
    write_atomically(folder / name, data)
    write_atomically(folder / CHECKPOINT_FILE, f"{json.dumps(about, indent=1, sort_keys=True)}\n".encode())
    for path in folder.glob("checkpoint-*.safetensors"):
        if path.name != name:
            path.unlink(missing_ok=True)


def read_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """Return the checkpoint in a work folder, or None if there is none.

    Raises:
        DataError: the checkpoint is damaged, has a newer format, or belongs to a run with other settings.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_bytes())
        _require_same_run(about, identity, folder)
        data = (folder / about["tensors"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise ValueError("its tensors have changed since they were written")  # noqa: TRY301  one message for all
        groups: dict[str, State] = {}
        for name, tensor in safetensors.torch.load(data).items():
            group, _, key = name.partition("/")
            groups.setdefault(group, {})[key] = tensor
        points = tuple(TrainingPoint(**point) for point in about["history"])
        return Checkpoint(identity, about["step"], about["seconds"], about["complete"], points, groups)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"The checkpoint in {folder} is damaged: {error}. Delete the folder to start training over."
        ) from error


def _require_same_run(about: Mapping[str, Any], identity: str, folder: Path) -> None:
    if about["format_version"] > FORMAT_VERSION:
        raise DataError(
            f"The checkpoint in {folder} has format version {about['format_version']}, but this dfq-plugins reads "
            f"versions up to {FORMAT_VERSION}. Install a newer dfq-plugins."
        )
    if about["identity"] != identity:
        raise DataError(
            f"{folder} holds a checkpoint of another run (digest {short_digest(about['identity'])}, this run has "
            f"{short_digest(identity)}): the model, the data, the recipe or an option differs. Use the same ones to "
            "resume that run, or choose another folder."
        )
