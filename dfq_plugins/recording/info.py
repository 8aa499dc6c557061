"""The contents of `record.json`, which describes an activation record. Imports neither torch nor pydantic."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dfq_plugins.errors import DataError

# pydantic resolves the annotations below at run time, so these imports cannot move into the TYPE_CHECKING block.
from dfq_plugins.recording.options import Graph, Statistic, Units  # noqa: TC001
from dfq_plugins.storage.canonical_json import jsonable
from dfq_plugins.storage.files import write_atomically
from dfq_plugins.types import InputSpec  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import TypeAdapter

INFO_FILE = "record.json"
TENSOR_FILE = "record.safetensors"
FORMAT_VERSION = 1

NEXT_STEP = "Restore it from a copy, or record the model again with dfq record."


@dataclass(frozen=True)
class Layer:
    """One recorded layer.

    Args:
        name: module that reads the activation, or `output`.
        shape: shape of one sample's activation, without the batch axis.
        units: number of recorded units.
        rectified: whether the activation is never negative, so that negative targets mean zero.
    """

    name: str
    shape: tuple[int, ...]
    units: int
    rectified: bool


@dataclass(frozen=True)
class NoiseRecord:
    """The noise that was added to a record.

    Args:
        epsilon: privacy budget.
        delta: probability that the privacy budget fails.
        clip_norm: norm to which a sample's units, over all recorded layers, were clipped.
        multiplier: standard deviation of the noise on the sums, in units of `clip_norm` (its square on the products).
    """

    epsilon: float
    delta: float
    clip_norm: float
    multiplier: float


@dataclass(frozen=True)
class RecordInfo:
    """The contents and origin of an activation record.

    Args:
        model_digest: digest of the recorded network.
        input_spec: its input specification.
        class_counts: samples per class; if noise was added, with noise and rounded.
        labels: whether the classes came with the data or from the network.
        statistics: the recorded statistics.
        layers: the recorded layers, the output last.
        units: definition of a unit.
        temperature: divisor of the logits.
        graph: edge weights of the graph for spectral statistics.
        coefficients: fraction of the Fourier coefficients that is kept.
        dropout_filters: number of dropout filters.
        jitter: largest variance added to make a singular covariance regular, by statistic; empty if none was needed.
        noise: the added noise; None without noise.
        reveals: what the record reveals about the data, as sentences.
        sha256: checksum of the tensor file.
        versions: versions of Python and the libraries that made the record.
        format_version: version of this format.
    """

    model_digest: str
    input_spec: InputSpec
    class_counts: tuple[int, ...]
    labels: Literal["given", "teacher"]
    statistics: tuple[Statistic, ...]
    layers: tuple[Layer, ...]
    units: Units
    temperature: float
    graph: Graph
    coefficients: float
    dropout_filters: int
    jitter: dict[str, float]
    noise: NoiseRecord | None
    reveals: tuple[str, ...]
    sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def write_info(folder: Path, info: RecordInfo) -> None:
    """Write `record.json` atomically.

    Raises:
        DataError: the folder cannot be written.
    """
    text = json.dumps(jsonable(info), indent=2, sort_keys=True, allow_nan=False)
    write_atomically(folder / INFO_FILE, f"{text}\n".encode())


def read_info(folder: Path) -> RecordInfo:
    """Read and check the `record.json` of the record in `folder`.

    Raises:
        DataError: it is missing or damaged, or a newer version wrote it.
    """
    path = folder / INFO_FILE
    try:
        data = json.loads(path.read_bytes())
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, but this dfq-plugins reads versions up to {FORMAT_VERSION}. "
                "Install a newer dfq-plugins."
            )
        info: RecordInfo = _adapter().validate_python(data)
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not an activation record: it has no {INFO_FILE}. Give a folder that dfq record wrote."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Give a folder that dfq record wrote.") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: it is not a valid record. {NEXT_STEP}") from error
    return info


@functools.cache
def _adapter() -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415  heavy

    return TypeAdapter(RecordInfo)
