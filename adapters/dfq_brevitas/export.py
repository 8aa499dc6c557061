"""Writes a quantized graph as QONNX and as QCDQ ONNX, and hands each over only if it computes the same when run.

QONNX keeps the quantizers as nodes of their own with any width, for FINN and hls4ml; `qonnx` runs it. QCDQ says the
same in standard QuantizeLinear, Clip and DequantizeLinear nodes; ONNX Runtime runs it.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model

from dfq_brevitas.finn.check import check_finn_rules
from dfq_brevitas.finn.file import finn_onnx, give_parameters_a_rank
from dfq_brevitas.framework import GraphModule, export_onnx_qcdq, export_qonnx
from dfq_brevitas.quiet import framework_notices_silenced
from dfq_plugins.errors import ArtifactError, DataError
from dfq_plugins.types import Artifact, Check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_brevitas.options import Target

    Runner = Callable[[Path, np.ndarray[Any, Any]], np.ndarray[Any, Any]]

QONNX_FILE, QCDQ_FILE = "model.qonnx.onnx", "model.qcdq.onnx"
INPUT, OUTPUT = "input", "output"
TOLERANCE = 0.05
"""Largest allowed difference, as a share of the largest output.

The runtimes sum in another order, so that a value between two levels may now and then fall to the other side.
"""
_OPSET = 13  # the first with per-channel QuantizeLinear; FINN reads no later one reliably


def export_onnx(
    graph: GraphModule, samples: torch.Tensor, folder: Path, *, with_qcdq: bool = True, target: Target = "generic"
) -> tuple[Artifact, ...]:
    """Write both files into `folder`, run each on `samples`, compare, and only then give it its name.

    Args:
        graph: a converted model.
        samples: inputs `(samples, *shape)` to compare on.
        folder: where to write; created if it is not there.
        with_qcdq: write the QCDQ file too, which has no form for binary weights.
        target: what the QONNX file is for; for FINN it is checked by FINN's rules as well.

    Raises:
        ArtifactError: a file cannot be written in its format, or does not agree with the model.
        DataError: the folder cannot be written.
    """
    private = copy.deepcopy(graph).cpu().eval()
    with torch.no_grad():
        expected = private(samples)
    write, inspect = (_write_finn, check_finn_rules) if target == "finn" else (_write_qonnx, None)
    qonnx = _export(private, samples, expected, folder / QONNX_FILE, "QONNX", write, run_qonnx, inspect)
    if not with_qcdq:
        return (qonnx,)
    qcdq = _export(private, samples, expected, folder / QCDQ_FILE, "QCDQ ONNX", _write_qcdq, run_onnx_runtime)
    return qonnx, qcdq


def _export(
    graph: GraphModule,
    samples: torch.Tensor,
    expected: torch.Tensor,
    target: Path,
    name: str,
    write: Callable[[GraphModule, torch.Tensor, Path], None],
    run: Runner,
    inspect: Callable[[Path], Check] | None = None,
) -> Artifact:
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        with framework_notices_silenced():
            write(copy.deepcopy(graph), samples[:1], temporary)
            rules = () if inspect is None else (inspect(temporary),)
            check = compare_outputs(expected, torch.from_numpy(run(temporary, samples.numpy())), name)
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"{target.parent} must be a writable folder with free space: {error}. Give another.") from error
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"This model has no {name} form that runs: {type(error).__name__}: {error}. Rewrite what it names, or keep "
            "the converted model in Python and do without the export."
        ) from error
    finally:
        _remove(temporary)
    return Artifact(target, name, target.stat().st_size, (check, *rules))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # where the folder itself is no folder, the first error says so
        path.unlink()


def _write_qonnx(graph: GraphModule, sample: torch.Tensor, path: Path) -> None:
    export_qonnx(graph, args=sample, export_path=str(path), **_settings())
    # The first step of every QONNX flow, FINN's included: constants folded, shapes inferred, nodes named.
    model = cleanup_model(ModelWrapper(str(path)))
    give_parameters_a_rank(model)
    model.save(str(path))


def _write_finn(graph: GraphModule, sample: torch.Tensor, path: Path) -> None:
    _write_qonnx(graph, sample, path)
    finn_onnx(ModelWrapper(str(path))).save(str(path))


def _write_qcdq(graph: GraphModule, sample: torch.Tensor, path: Path) -> None:
    axes = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    export_onnx_qcdq(graph, args=sample, export_path=str(path), dynamic_axes=axes, **_settings())


def _settings() -> dict[str, Any]:
    # Brevitas's exporter through torch.export cannot write quantized biases; TorchScript's writes both formats.
    return {"dynamo": False, "opset_version": _OPSET, "input_names": [INPUT], "output_names": [OUTPUT]}


def run_qonnx(path: Path, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run a QONNX file sample by sample with `qonnx` and return its outputs `(samples, ...)`."""
    model = ModelWrapper(str(path))
    names = model.graph.input[0].name, model.graph.output[0].name
    outputs = [execute_onnx(model, {names[0]: sample[np.newaxis]})[names[1]] for sample in inputs]
    return np.concatenate(outputs)


def run_onnx_runtime(path: Path, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run a QCDQ file with ONNX Runtime on the CPU and return its outputs `(samples, ...)`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    # Fused int8 kernels round differently; the check is about the file, so the graph runs as it is written.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs: np.ndarray[Any, Any] = session.run(None, {INPUT: inputs})[0]
    return outputs


def compare_outputs(expected: torch.Tensor, got: torch.Tensor, name: str) -> Check:
    """Compare a file's outputs with the torch model's and say by how much they differ.

    Raises:
        ArtifactError: the largest difference is above 5 % of the largest output.
    """
    if got.shape != expected.shape:
        raise ArtifactError(
            f"The {name} file must return what the torch model does, {tuple(expected.shape)}, but returns "
            f"{tuple(got.shape)}. It was removed; please report the model."
        )
    difference = (expected - got).abs().max().item()
    share = difference / max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
    agreement = (expected.flatten(1).argmax(1) == got.flatten(1).argmax(1)).float().mean().item()
    figures = (
        f"{len(expected)} samples: top-1 agreement {agreement:.1%}, maximum difference {difference:.3g} "
        f"({share:.2%} of the largest output)"
    )
    if not share <= TOLERANCE:
        raise ArtifactError(
            f"The {name} file must compute what the torch model does, within {TOLERANCE:.0%} of the largest output, "
            f"but on {figures}. It was removed; please report the model."
        )
    return Check("run and compared", figures)
