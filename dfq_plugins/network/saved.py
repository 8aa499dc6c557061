"""Networks in a folder: weights as safetensors, and JSON that says what they are and which factory builds the network.

A pruned network has fewer filters than what its factory builds. The JSON therefore holds the sizes of all layers, which
are given to the factory's network before the weights are loaded. No pickle is involved.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from dfq_plugins.errors import DataError, ModelError
from dfq_plugins.network.digest import model_digest
from dfq_plugins.storage.canonical_json import jsonable, short_digest
from dfq_plugins.storage.files import create_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

SAVED = "saved:"
"""Begins a reference to the folder of a network that `dfq prune` or `dfq distill` wrote."""

NETWORK_FILE, WEIGHTS_FILE = "network.json", "network.safetensors"

FORMAT_VERSION = 1

SIZES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_groups",
    "num_parameters",
    "normalized_shape",
)
"""Attributes by which torch's layers know how wide they are; no others are ever set from a file."""


def save_network(model: nn.Module, folder: Path, *, factory: str | None, about: Mapping[str, object]) -> Path:
    """Write a network into a folder, the JSON last, so that it always names weights that are whole.

    Args:
        model: what to write.
        folder: created where it is missing.
        factory: how the command line builds the network before any pruning, `file.py:factory` or the like; None where
            that is not known, and then the network must be given to `load_network`.
        about: what else the JSON is to hold, in values that JSON knows.

    Returns:
        The path of the JSON file.

    Raises:
        DataError: the folder cannot be written.
    """
    create_folder(folder)
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    data = safetensors.torch.save(state)
    record = {
        **about,
        "format_version": FORMAT_VERSION,
        "factory": None if factory is None else _seen_from(folder, factory),
        "weights": WEIGHTS_FILE,
        "sha256": hashlib.sha256(data).hexdigest(),
        "digest": model_digest(model),
        "sizes": layer_sizes(model),
    }
    write_atomically(folder / WEIGHTS_FILE, data)
    text = json.dumps(jsonable(record), indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / NETWORK_FILE, f"{text}\n".encode())
    return folder / NETWORK_FILE


def layer_sizes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the width of every layer of torch, by its name.

    >>> layer_sizes(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    {'0': {'in_features': 2, 'out_features': 3}}
    """
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            sizes = {size: value for size in SIZES if isinstance(value := getattr(module, size, None), int | tuple)}
            if sizes:
                found[name] = sizes
    return found


def restore_network(built: nn.Module, folder: Path, record: Mapping[str, Any], *, origin: str) -> nn.Module:
    """Give a network that was just built the sizes and weights in the folder, in place, and return it in eval mode.

    Args:
        built: the network before any pruning, with any weights.
        folder: of `network.json`.
        record: what `network.json` says.
        origin: what built it, for messages.

    Raises:
        DataError: the weights are damaged.
        ModelError: the network is not the one that was saved.
    """
    state = _read_weights(folder, record)
    try:
        _give_sizes(built, record["sizes"])
        _give_weights(built, state)
    except (AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"The network in {folder} does not fit what {origin} builds: {reason}. Give the network that it was made "
            "from."
        ) from error
    if (found := model_digest(built)) != record["digest"]:
        raise ModelError(
            f"The network in {folder} has the digest {short_digest(record['digest'])}, and with what {origin} builds "
            f"now it would be {short_digest(found)}: that network was changed since. Give it as it was."
        )
    return built.eval()


def factory_of(folder: Path, record: Mapping[str, Any]) -> str:
    """Return the factory that `network.json` names, as it is seen from anywhere.

    Raises:
        ModelError: it names none.
    """
    factory = record["factory"]
    if factory is None:
        raise ModelError(
            f"{folder / NETWORK_FILE} names no factory, so the network cannot be built. Write one into it, e.g. "
            '"factory": "file.py:network", or give the network: load_network(folder, model).'
        )
    return _resolved(folder, factory)


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `network.json` says.

    Raises:
        DataError: there is none, it is damaged, or a newer version wrote it.
    """
    path = folder / NETWORK_FILE
    try:
        record = json.loads(path.read_bytes())
        version = int(record["format_version"])
        if version <= FORMAT_VERSION:
            texts = [name for name in ("weights", "sha256", "digest") if not isinstance(record[name], str)]
            factory = [] if isinstance(record["factory"], str | None) else ["factory"]
            if wrong := [*texts, *factory, *([] if isinstance(record["sizes"], dict) else ["sizes"])]:
                raise TypeError(f"{wrong[0]} is {record[wrong[0]]!r}")  # noqa: TRY301  one message for all damage
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} holds no saved network: {type(error).__name__} in {NETWORK_FILE}, {error}. Give the folder that "
            "dfq distill or dfq prune wrote."
        ) from error
    raise DataError(
        f"{path} has format version {version}, and this dfq-plugins reads up to {FORMAT_VERSION}. Install a newer "
        "dfq-plugins."
    )


def _seen_from(folder: Path, factory: str) -> str | None:
    """Return a factory with its file's path relative to the folder, so that both can move together.

    Of a saved network that is the factory behind it, for the sizes of all layers are written anew.
    """
    if factory.startswith(SAVED):
        former = Path(factory.removeprefix(SAVED))
        behind = read_record(former)["factory"]
        return None if behind is None else _seen_from(folder, _resolved(former, behind))
    source, separator, name = factory.rpartition(":")
    if not separator or not source.endswith(".py"):
        return factory
    try:
        return f"{Path(os.path.relpath(source, folder)).as_posix()}:{name}"
    except ValueError:  # another drive
        return f"{Path(source).absolute()}:{name}"


def _resolved(folder: Path, factory: str) -> str:
    """Return a factory as it is seen from anywhere."""
    source, _, name = factory.rpartition(":")
    return f"{(folder / source).resolve()}:{name}" if source.endswith(".py") else factory


def _read_weights(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        data = (folder / Path(record["weights"]).name).read_bytes()
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise ValueError("they changed since they were written")  # noqa: TRY301  one message for all damage
        return safetensors.torch.load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"The weights in {folder} are damaged: {error}. Make the network again.") from error


def _give_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    for name, wanted in sizes.items():
        module = model.get_submodule(name)
        for size, value in wanted.items():
            if size not in SIZES or not isinstance(getattr(module, size, None), int | tuple):
                raise AttributeError(f"{name} has no size {size}")
            setattr(module, size, tuple(map(int, value)) if isinstance(value, list) else int(value))


def _give_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dictionary whose tensors may have other shapes than the network's."""
    for owner, kind, name, key in _tensors(model):
        if key in state and (old := getattr(owner, name)).shape != state[key].shape:
            new = torch.empty_like(state[key], device=old.device)
            setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad) if kind == "parameter" else new)
    model.load_state_dict(state)


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, str]]:
    """Yield each parameter and buffer: its module, what it is, its name there, and its name in the whole."""
    for path, module in model.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            yield module, "parameter", name, f"{path}.{name}".lstrip(".")
        for name, _ in list(module.named_buffers(recurse=False)):
            yield module, "buffer", name, f"{path}.{name}".lstrip(".")
