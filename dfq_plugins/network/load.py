"""Loads a model from a reference on the command line: a torchvision name, or a factory in a package or file."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import pickle
import re
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfq_plugins.errors import ModelError, UsageError, first_line, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch import nn

    from dfq_plugins.network.checkpoints import Weights

SAVED = "saved:"
"""Prefix of a reference to the folder of a network that `dfq prune` or `dfq distill` wrote."""

logger = logging.getLogger(__name__)

_counter = itertools.count(1)


def load_model(reference: str, weights: Path | None = None) -> nn.Module:
    """Build a model and load its weights; the global random state is preserved.

    Args:
        reference: `torchvision:resnet18`, `package.module:factory` or `path/to/file.py:factory`; a factory takes no
            arguments and returns the model. `saved:folder` is a pruned or distilled network.
        weights: state dict as .safetensors, or as .pth or .pt read with `weights_only=True`; None keeps the factory's
            weights.

    Returns:
        The model in eval mode.

    Raises:
        UsageError: the reference or the suffix of the weights file is invalid.
        ModelError: the factory is not found or fails, or the weights do not match or contain code.
    """
    from dfq_plugins.model_state import preserve_global_state  # noqa: PLC0415  imports torch

    source, separator, name = reference.rpartition(":")
    if reference.lower().endswith(".onnx"):
        raise UsageError(
            f"A torch network is needed, whose layers and gradients are used, got the ONNX file {reference}. Only "
            "dfq quantize with a calibrator that takes ONNX files, such as onnxruntime, and without --finetune, needs "
            "nothing else. Give the network that the file was exported from, e.g. as file.py:factory."
        )
    if not (separator and source and name):
        raise UsageError(
            "A model must be torchvision:NAME, package.module:factory, file.py:factory or saved:FOLDER, got "
            f"{reference!r}. Try e.g. torchvision:resnet18."
        )
    if reference.startswith(SAVED):
        return _load_saved(reference, weights)
    with preserve_global_state():
        model = _build(source, name, reference)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def _load_saved(reference: str, weights: Path | None) -> nn.Module:
    if weights is not None:
        raise UsageError(f"{reference} includes its weights, so {weights} cannot be loaded. Omit it.")
    return load_network(reference.removeprefix(SAVED))


def _build(source: str, name: str, reference: str) -> nn.Module:
    from torch import nn  # noqa: PLC0415  heavy

    if source == "torchvision":
        return _from_torchvision(name)
    is_file = source.endswith(".py")
    with _on_module_path(Path(source).parent if is_file else Path.cwd()):
        module = _module_from_file(Path(source)) if is_file else _import_module(source)
        try:
            model = _find_factory(module, name, source)()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"The factory {reference} failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"The factory {reference} must return a torch.nn.Module, got {type(model).__name__}. "
            "Pass a checkpoint with --weights."
        )
    return model


def _from_torchvision(name: str) -> nn.Module:
    import torchvision  # noqa: PLC0415  heavy

    known = torchvision.models.list_models()
    if name not in known:
        raise ModelError(
            f"torchvision has no model {name!r}.{nearest(name, known)} "
            f"torchvision.models.list_models() lists all {len(known)}."
        )
    return torchvision.models.get_model(name, weights=None)  # type: ignore[no-any-return]  # torchvision has no types


def _find_factory(module: ModuleType, name: str, source: str) -> Callable[[], Any]:
    factory = getattr(module, name, None)
    if factory is None:
        public = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
        own = [key for key, value in public.items() if getattr(value, "__module__", None) == module.__name__]
        raise ModelError(
            f"{source} has no factory {name!r}.{nearest(name, public)} It has {', '.join(own) or 'none'}. "
            "Give a function or class that returns the network."
        )
    if not callable(factory):
        raise ModelError(
            f"{source}:{name} must be a function or class that takes no arguments, got {type(factory).__name__}."
        )
    return factory  # type: ignore[no-any-return]  # whatever the user's file defines


def _import_module(source: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except Exception as error:
        raise ModelError(
            f"Cannot import {source!r} for the model: {type(error).__name__}: {error}. "
            "Give an importable package.module:factory, or file.py:factory."
        ) from error


def _module_from_file(path: Path) -> ModuleType:
    """Run a file as a module with a unique name."""
    if not path.is_file():
        raise ModelError(f"The model file {path} does not exist. Give its path, relative to this folder or absolute.")
    name = f"_dfq_model_{next(_counter)}_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ModelError(f"The model file {path} cannot be imported as Python source.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch.fx look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"The model file {path} failed with {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _on_module_path(folder: Path) -> Iterator[None]:
    """Put `folder` on the module search path; if the block fails, discard the modules imported from it."""
    place = str(folder.resolve())
    before = set(sys.modules)
    sys.path.insert(0, place)
    try:
        yield
    except BaseException:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(place):
                del sys.modules[name]
        raise
    finally:
        if place in sys.path:
            sys.path.remove(place)


def load_network(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Return the network from a folder that `distill` or `prune` wrote, in eval mode.

    Args:
        folder: folder of `network.json`.
        model: the unpruned network, with any weights; it is not modified. None builds it with the factory that the
            JSON names, which is Python code: load only folders whose code you would run.

    Raises:
        DataError: the folder does not hold a saved network, or it is damaged.
        ModelError: no factory is named, it fails, or it builds another network.
    """
    from dfq_plugins.model_state import frozen_copy  # noqa: PLC0415  imports torch
    from dfq_plugins.network.saved import factory_of, read_record, restore_network  # noqa: PLC0415  imports torch

    folder = Path(folder)
    record = read_record(folder)
    if model is None:
        factory = factory_of(folder, record)
        return restore_network(load_model(factory), folder, record, origin=factory)
    private = frozen_copy(model).requires_grad_(requires_grad=True)
    return restore_network(private, folder, record, origin=type(model).__name__)


_SHOWN_KEYS = 5


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights in a state dict or a checkpoint into `model`, in place.

    In a checkpoint, they are found by the network's names and shapes, under any key (`state_dict`, `model`, `ema`) and
    behind any prefix (`module.`, `_orig_mod.`, Lightning's `model.`); a log line says where, and what was left out.
    Counters such as `num_batches_tracked` may be missing or superfluous.

    Args:
        model: the model to load into.
        path: .safetensors, or .pth or .pt read with `weights_only=True`.

    Raises:
        UsageError: the file has another suffix.
        ModelError: the file is missing, unreadable or contains code, or its weights do not match.
    """
    from dfq_plugins.network.checkpoints import COUNTERS, find_weights  # noqa: PLC0415  imports torch

    found = find_weights(_read_state(path), model)
    if not found:
        raise ModelError(
            f"The weights file {path} does not hold a state dict, a mapping of names to tensors. Save the network's "
            "state_dict()."
        )
    best, *others = found
    try:
        report = model.load_state_dict(best.state, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(f"The weights {path} do not match the model: {_shorten(reasons)}") from error
    missing = [key for key in report.missing_keys if not key.endswith(COUNTERS)]
    if missing or report.unexpected_keys:
        raise ModelError(
            f"The weights {path} do not match the model. Missing: {_shorten(missing)}. "
            f"Unexpected: {_shorten(report.unexpected_keys)}. Use the factory they were saved from."
        )
    if best.place or best.left_out:
        logger.warning("%s", _choice(path, best, others))


def _choice(path: Path, taken: Weights, others: list[Weights]) -> str:
    """Say which weights of a checkpoint were loaded, and how to load others that fit as well."""
    left_out = f"; left out {_shorten(list(taken.left_out))}" if taken.left_out else ""
    text = f"Weights from {path.name}: took {taken.place or 'the network'}{left_out}."
    if others:
        other = others[0]
        kept = (
            "weights" if not other.prefix else f"{{k: v for k, v in weights.items() if k.startswith({other.prefix!r})}}"
        )
        keys = "".join(f"[{key!r}]" for key in other.keys)
        places = _shorten([weights.place or "the top level" for weights in others])
        text += (
            f" Weights that fit are also in {places}. To load those, save them alone: "
            f"weights = torch.load({path.name!r}){keys}; torch.save({kept}, 'other.pth')."
        )
    return text


def _read_state(path: Path) -> Any:
    import torch  # noqa: PLC0415  heavy

    if not path.is_file():
        raise ModelError(f"The weights file {path} does not exist. Give its path, relative to this folder or absolute.")
    if path.suffix not in {".safetensors", ".pth", ".pt"}:
        raise UsageError(
            f"A weights file must end in .safetensors, .pth or .pt, got {path.name!r}. Save the state dict as one of "
            "these."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415  imports torch

            return load_file(path)
        with warnings.catch_warnings():
            # Other pickle protocols are also read or rejected; the caller cannot do anything about this warning.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"The weights file {path} contains pickled code or is damaged, and is rejected: only tensors are loaded. "
            "Save only the state dict, preferably with safetensors.torch.save_file(model.state_dict(), ...)."
        ) from error
    except Exception as error:
        raise ModelError(
            f"The weights file {path} cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error


def _shorten(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN_KEYS} more" if len(items) > _SHOWN_KEYS else ""
    return (", ".join(items[:_SHOWN_KEYS]) or "none") + more
