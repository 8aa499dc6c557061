"""Runs ONNX files in ONNX Runtime: exactly as written, or with the default optimizations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime
import torch

from dfq_plugins.errors import ArtifactError
from dfq_plugins.inputs import leaves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from dfq_plugins.types import Inputs

    Array = np.ndarray[Any, Any]


def feeds_of(model: Any, inputs: Inputs) -> dict[str, Array]:
    """Return the inputs as arrays, by the names that they have in a file's graph.

    Args:
        model: the `onnx.ModelProto`.
        inputs: `(samples, *shape)` each, in the order of the graph's inputs.
    """
    return {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, leaves(inputs), strict=False)}


def exact_session(model: bytes | Path) -> Any:
    """Return a session that runs each operator as written, in float.

    On processors without VNNI, the fused int8 kernels of the default session add pairs of products in 16 bits, and clip
    larger sums. They also round in other places. These differences come from the processor, not the file.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    settings = _settings()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(model, settings)


def default_session(model: bytes | Path) -> Any:
    """Return a session with the default optimizations.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    return _session(model, _settings())


def run_session(session: Any, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
    """Return the named outputs of a session, or all of them if none are named.

    Raises:
        ArtifactError: ONNX Runtime cannot run the file on these inputs.
    """
    try:
        found: list[Array] = session.run(outputs, dict(feeds))
    except (MemoryError, OSError):
        raise
    except Exception as error:  # its exceptions have no other common base class
        samples = len(next(iter(feeds.values())))
        raise ArtifactError(
            f"ONNX Runtime cannot run the file on a batch of {samples}: {error}. Look for sizes, such as the batch "
            "size, that the model's forward treats as constants."
        ) from error
    return found


def _settings() -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # not even errors, which are raised
    return settings


def _session(model: bytes | Path, settings: Any) -> Any:
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    except (MemoryError, OSError):
        raise
    except Exception as error:  # its exceptions have no other common base class
        raise ArtifactError(
            f"ONNX Runtime cannot load the file: {error}. Use the converted torch model, and report this."
        ) from error
