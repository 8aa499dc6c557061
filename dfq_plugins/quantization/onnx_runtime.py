"""Runs ONNX files in ONNX Runtime: exactly as they are written, or as users run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime
import torch

from dfq_plugins.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    Array = np.ndarray[Any, Any]


def exact_session(model: bytes | Path) -> Any:
    """Return a session that runs each operator as it is written, in float.

    The fused int8 kernels of the default session add up pairs of products in 16 bits on processors without VNNI, and
    cut off what is larger. They round in other places, too. That says something about the processor, not the file.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    settings = _settings()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(model, settings)


def default_session(model: bytes | Path) -> Any:
    """Return a session with the optimizations that users get who set none.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    return _session(model, _settings())


def run_session(session: Any, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
    """Return the outputs of a session; all of them where none are named.

    Raises:
        ArtifactError: ONNX Runtime cannot run the file on these inputs.
    """
    try:
        found: list[Array] = session.run(outputs, dict(feeds))
    except (MemoryError, OSError):
        raise
    except Exception as error:  # its exceptions share no base but this
        samples = len(next(iter(feeds.values())))
        raise ArtifactError(
            f"ONNX Runtime cannot run the file on a batch of {samples}: {error}. Look for sizes, such as the batch's, "
            "that the model's forward takes as constants."
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
    except Exception as error:  # its exceptions share no base but this
        raise ArtifactError(
            f"ONNX Runtime cannot load the file: {error}. Use the converted torch model, and report this."
        ) from error
