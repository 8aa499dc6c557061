"""Loads an exported file back as a torch module: `load_quantized`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dfq_plugins.errors import DataError, PluginError, UsageError
from dfq_plugins.host.plugin_info import attributed
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import preserve_global_state
from dfq_plugins.quantization.artifacts import REJECTED_SUFFIX
from dfq_plugins.types import CalibratorEntry

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.host.plugin_info import PluginInfo
    from dfq_plugins.host.registry import Registry

_Owners = dict[str, list["PluginInfo"]]
"""The calibrators that load files with a name ending, by that ending."""


def load_quantized(path: Path | str, *, registry: Registry | None = None) -> nn.Module:
    """Load an exported file back as a module in eval mode that computes what the file computes, on the CPU.

    The ending of the file's name tells which framework's calibrator loads it, and only that framework is imported.
    Python's pickle is not involved: TorchScript archives are read by torch's C++ reader, ONNX files by ONNX Runtime, in
    exact arithmetic (see `dfq_plugins.quantization.onnx_module.OnnxModule`). A TorchScript archive is still a program:
    load only those that you trust.

    Args:
        path: a file that an export wrote, under the name ending that the export gave it, or a folder with exactly one
            such file.
        registry: registry to look up plugins in; None uses the installed plugins.

    Raises:
        UsageError: the name does not tell the framework, the folder holds several artifacts, or the file was rejected
            when it was exported.
        DataError: there is no such file, or it is damaged.
        PluginError: the framework is not installed; the error gives the pip line.
    """
    registry = registry or get_registry()
    owners = _owners(registry)
    artifact = _only_artifact(Path(path), owners)
    info = _owner(artifact, owners)
    calibrator = registry.create("calibrator", info.entry.name)
    with preserve_global_state(), attributed(info):
        return calibrator.load(artifact).eval()


def _owners(registry: Registry) -> _Owners:
    owners: _Owners = {}
    for info in registry.calibrators.values():
        if isinstance(info.entry, CalibratorEntry):
            for suffix in info.entry.artifact_suffixes:
                owners.setdefault(suffix, []).append(info)
    return owners


def _suffix(path: Path, owners: _Owners) -> str | None:
    """Return the longest known ending of a file's name."""
    return max((suffix for suffix in owners if path.name.endswith(suffix)), key=len, default=None)


def _owner(path: Path, owners: _Owners) -> PluginInfo:
    suffix = _suffix(path, owners)
    if suffix is None:
        raise UsageError(
            f"The name of an exported file must end with {_known(owners)}, got {path.name}. Give it the name that its "
            "export gave it."
        )
    first, *others = owners[suffix]
    if others:
        names = " and ".join(str(info) for info in (first, *others))
        raise PluginError(f"Only one calibrator may load *{suffix}, but several do: {names}. Uninstall all but one.")
    return first


def _only_artifact(path: Path, owners: _Owners) -> Path:
    """Return the file itself, or the only artifact of a folder."""
    rejected = path if path.name.endswith(REJECTED_SUFFIX) else path.with_name(path.name + REJECTED_SUFFIX)
    if path == rejected or (rejected.is_file() and not path.exists()):
        raise _rejected(rejected)
    if not path.exists():
        raise DataError(f"An exported file or a folder with one is needed, but there is no {path}. Export it first.")
    if not path.is_dir():
        return path
    try:
        files = sorted(file for file in path.iterdir() if file.is_file())
    except OSError as error:
        raise DataError(f"{path} must be a readable folder: {error}. Give another folder, or the file.") from error
    artifacts = [file for file in files if _suffix(file, owners) is not None]
    if len(artifacts) > 1:
        names = ", ".join(file.name for file in artifacts)
        raise UsageError(f"The folder {path} must hold exactly one artifact, but holds {names}. Give one of the files.")
    if not artifacts:
        refused = next((file for file in files if file.name.endswith(REJECTED_SUFFIX)), None)
        if refused is not None:
            raise _rejected(refused)
        raise DataError(
            f"The folder {path} must hold a file whose name ends with {_known(owners)}, but there is none. Give the "
            "folder that a model was exported to."
        )
    return artifacts[0]


def _rejected(path: Path) -> UsageError:
    return UsageError(
        f"Only a file that passed its check can be loaded, but {path} was rejected when it was exported: it could not "
        "be checked, or does not compute what the quantized model does. Use that model in Python; `rejected` of the "
        "run says what differs."
    )


def _known(owners: _Owners) -> str:
    endings = [f"{suffix} ({', '.join(info.entry.name for info in infos)})" for suffix, infos in owners.items()]
    return ", ".join(endings) or "an ending that a calibrator knows, and no installed one loads files"
