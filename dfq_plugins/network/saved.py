"""Networks saved in a folder: the weights as safetensors, and JSON that describes them and names the network's factory.

A pruned network has fewer filters than the network that its factory builds. The JSON therefore holds the sizes of all
layers, which are set on the factory's network before the weights are loaded. No pickle is involved.
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
"""Prefix of a reference to the folder of a network that `dfq prune` or `dfq distill` wrote."""

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
"""Attributes of torch's layers that store their width; only these are ever set from a file."""


def save_network(model: nn.Module, folder: Path, *, factory: str | None, about: Mapping[str, object]) -> Path:
    """Write a network into a folder; the JSON is written last, so that it always refers to complete weights.

    Args:
        model: the network to write.
        folder: the folder; created if missing.
        factory: how the command line builds the unpruned network, such as `file.py:factory`; None if unknown, in which
            case the network must be passed to `load_network`.
        about: additional entries of the JSON, with values that have a JSON form.

    Returns:
        The path of the JSON file.

    Raises:
        DataError: the folder is not writable.
    """
    create_folder(folder)
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    data = safetensors.torch.save(state)
    record = {
        **about,
        "format_version": FORMAT_VERSION,
        "factory": None if factory is None else _relative_factory(folder, factory),
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
    """Return the width attributes of every torch layer, by layer name.

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
    """Set the saved sizes and weights on a newly built network, in place; return it in eval mode.

    Args:
        built: the unpruned network, with any weights.
        folder: folder of `network.json`.
        record: the contents of `network.json`.
        origin: what built the network, for error messages.

    Raises:
        DataError: the weights are damaged.
        ModelError: the network differs from the one that was saved.
    """
    state = _read_weights(folder, record)
    try:
        _set_sizes(built, record["sizes"])
        _set_weights(built, state)
    except (AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"The network in {folder} does not match the one that {origin} builds: {reason}. Provide the network that "
            "it was made from."
        ) from error
    if (found := model_digest(built)) != record["digest"]:
        raise ModelError(
            f"The network in {folder} has the digest {short_digest(record['digest'])}, but with the network that "
            f"{origin} builds now the digest is {short_digest(found)}: that network has changed. Restore it."
        )
    return built.eval()


def factory_of(folder: Path, record: Mapping[str, Any]) -> str:
    """Return the factory that `network.json` names, with an absolute path.

    Raises:
        ModelError: it names no factory.
    """
    factory = record["factory"]
    if factory is None:
        raise ModelError(
            f"{folder / NETWORK_FILE} names no factory, so the network cannot be built. Add one, e.g. "
            '"factory": "file.py:network", or pass the network: load_network(folder, model).'
        )
    return _absolute_factory(folder, factory)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of `network.json`.

    Raises:
        DataError: it is missing or damaged, or a newer version wrote it.
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
            f"{folder} does not hold a saved network: {type(error).__name__} in {NETWORK_FILE}, {error}. Give a folder "
            "that dfq distill or dfq prune wrote."
        ) from error
    raise DataError(
        f"{path} has format version {version}, but this dfq-plugins reads versions up to {FORMAT_VERSION}. Install a "
        "newer dfq-plugins."
    )


def _relative_factory(folder: Path, factory: str) -> str | None:
    """Return a factory with its file's path relative to the folder, so that both can be moved together.

    For a saved network, return the factory that it names: the sizes of all layers are written again.
    """
    if factory.startswith(SAVED):
        former = Path(factory.removeprefix(SAVED))
        behind = read_record(former)["factory"]
        return None if behind is None else _relative_factory(folder, _absolute_factory(former, behind))
    source, separator, name = factory.rpartition(":")
    if not separator or not source.endswith(".py"):
        return factory
    try:
        return f"{Path(os.path.relpath(source, folder)).as_posix()}:{name}"
    except ValueError:  # another drive
        return f"{Path(source).absolute()}:{name}"


def _absolute_factory(folder: Path, factory: str) -> str:
    """Return a factory with an absolute path."""
    source, _, name = factory.rpartition(":")
    return f"{(folder / source).resolve()}:{name}" if source.endswith(".py") else factory


def _read_weights(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        data = (folder / Path(record["weights"]).name).read_bytes()
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise ValueError("the checksum does not match")  # noqa: TRY301  one message for all damage
        return safetensors.torch.load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"The weights in {folder} are damaged: {error}. Run dfq distill or dfq prune again.") from error


def _set_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    for name, wanted in sizes.items():
        module = model.get_submodule(name)
        for size, value in wanted.items():
            if size not in SIZES or not isinstance(getattr(module, size, None), int | tuple):
                raise AttributeError(f"{name} has no size {size}")
            setattr(module, size, tuple(map(int, value)) if isinstance(value, list) else int(value))


def _set_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict whose tensor shapes may differ from the network's."""
    for owner, kind, name, key in _named_tensors(model):
        if key in state and (old := getattr(owner, name)).shape != state[key].shape:
            new = torch.empty_like(state[key], device=old.device)
            setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad) if kind == "parameter" else new)
    model.load_state_dict(state)


def _named_tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, str]]:
    """Yield the module, kind, name in the module and qualified name of each parameter and buffer."""
    for path, module in model.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            yield module, "parameter", name, f"{path}.{name}".lstrip(".")
        for name, _ in list(module.named_buffers(recurse=False)):
            yield module, "buffer", name, f"{path}.{name}".lstrip(".")
