"""The manifest of a folder of artifacts: what was quantized, on what, how, by which versions, and what was checked."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError
from dfq_plugins.inputs import leaves
from dfq_plugins.network.digest import model_digest
from dfq_plugins.storage.canonical_json import jsonable, sha256_of, short_digest
from dfq_plugins.storage.files import create_folder, write_atomically
from dfq_plugins.storage.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import nn

    from dfq_plugins.quantization.result import QuantizationRun
    from dfq_plugins.types import Artifact, Inputs

MANIFEST_FILE = "artifacts.json"
"""Name of the manifest in a folder of artifacts."""

FORMAT_VERSION = 1


def about_network(network: nn.Module) -> dict[str, str]:
    """Return what a manifest says of a network; call it before a forward pass, which may change buffers."""
    return {"name": type(network).__name__, "digest": model_digest(network)}


def check_artifact_folder(folder: Path, network: Mapping[str, str]) -> None:
    """Reject a folder with the artifacts of another network, before any work is done.

    Args:
        folder: the folder; it need not exist.
        network: see `about_network`.

    Raises:
        DataError: its manifest names other weights or another architecture, or cannot be read.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return
    try:
        present = json.loads(path.read_text(encoding="utf-8"))
        theirs, name = str(present["network"]["digest"]), str(present["network"]["name"])
        _files = [file["file"] for former in present["runs"] for file in former["artifacts"]]  # as the writer reads it
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a manifest of artifacts ({error!r}). Choose another output folder.") from error
    ours = network["digest"]
    if theirs != ours:
        raise DataError(
            f"{folder} holds the artifacts of another network: {name} with the digest {short_digest(theirs)}, and this "
            f"is {network['name']} with {short_digest(ours)}. Choose another output folder, or delete this one."
        )


def data_digest(data: object, batches: Iterable[Inputs]) -> str:
    """Return the SHA-256 of a data set: of a synthetic one by its settings and shards, of any other by its values."""
    if isinstance(data, SyntheticDataset):
        return sha256_of([data.manifest.settings.digest, [shard.sha256 for shard in data.manifest.shards]])
    digest = hashlib.sha256()
    for batch in batches:
        for values in leaves(batch):
            digest.update(f"{tuple(values.shape)};".encode())
            digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_manifest(
    folder: Path,
    run: QuantizationRun,
    network: Mapping[str, str],
    *,
    data: Mapping[str, object],
    options: Any,
    spec: Any,
) -> Path:
    """Add a run to the manifest in the folder of its artifacts, and return the manifest's path.

    Earlier runs of the same network stay, unless this one has replaced a file of theirs.

    Args:
        folder: the folder; created if it does not exist.
        run: the result.
        network: see `about_network`.
        data: what is known of the data: its digest, the number of samples and, for a synthetic set, its folder.
        options: the calibrator's options record.
        spec: the input specification.

    Raises:
        DataError: the folder cannot be written.
    """
    files = [_described(artifact, folder) for artifact in run.artifacts]
    about = {
        "data": dict(data),
        "input_spec": None if spec is None else asdict(spec),
        "calibrator": run.calibrator,
        "recipe": str(run.recipe),
        "options": asdict(options),
        "output_agreement": [asdict(output) for output in run.output_agreement],
        "artifacts": files,
        "rejected": [{"name": one.name, "format": one.format, "reason": one.reason} for one in run.rejected],
        "versions": library_versions(),
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    written = {str(file["file"]) for file in files}
    kept = [former for former in _former_runs(folder) if not written & {file["file"] for file in former["artifacts"]}]
    record = {"format_version": FORMAT_VERSION, "network": dict(network), "runs": [*kept, about]}
    create_folder(folder)
    path = folder / MANIFEST_FILE
    write_atomically(path, (json.dumps(jsonable(record), indent=1, sort_keys=True) + "\n").encode())
    return path


def _former_runs(folder: Path) -> list[Any]:
    """Return the runs of the same network into this folder, such as those of other frameworks."""
    path = folder / MANIFEST_FILE
    return list(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.is_file() else []


def about_data(data: object, batches: Iterable[Inputs], samples: int) -> dict[str, object]:
    """Return what a manifest says of the data."""
    about: dict[str, object] = {"digest": data_digest(data, batches), "samples": samples}
    return about | {"folder": str(data.folder)} if isinstance(data, SyntheticDataset) else about


def _described(artifact: Artifact, folder: Path) -> dict[str, object]:
    return {
        "file": str(artifact.path.relative_to(folder)) if artifact.path.is_relative_to(folder) else str(artifact.path),
        "format": artifact.format,
        "size_bytes": artifact.size_bytes,
        "sha256": hashlib.sha256(artifact.path.read_bytes()).hexdigest() if artifact.path.is_file() else None,
        "checks": [asdict(check) for check in artifact.checks],
    }
