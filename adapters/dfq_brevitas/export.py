"""Writes a quantized graph as QONNX and as QCDQ ONNX, and keeps each file only if it computes the same when run.

QONNX represents quantizers of any width as dedicated nodes, for FINN and hls4ml. QCDQ expresses the same with standard
QuantizeLinear, Clip and DequantizeLinear nodes; ONNX Runtime runs it.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from dfq_brevitas.finn.check import check_finn_rules
from dfq_brevitas.finn.file import finn_onnx, give_parameters_a_rank
from dfq_brevitas.framework import GraphModule, export_onnx_qcdq, export_qonnx
from dfq_brevitas.integers import torch_run, torch_weights
from dfq_brevitas.notices import NOTICES
from dfq_brevitas.qonnx_cleanup import clean_qonnx
from dfq_brevitas.qonnx_lowering import lowered
from dfq_brevitas.quantized_once import weights_quantized_once
from dfq_plugins.inputs import rows
from dfq_plugins.network.graph_inputs import in_order, ordered, take_inputs_in_order
from dfq_plugins.quantization.artifacts import ArtifactRecipe, write_artifacts
from dfq_plugins.quantization.dynamic_sizes import check_other_sizes, open_axes
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.onnx_checks import check_onnx
from dfq_plugins.quantization.onnx_exporter import export_at
from dfq_plugins.quantization.onnx_module import OnnxModule, load_onnx
from dfq_plugins.quantization.onnx_quantizers import qdq_quantizers
from dfq_plugins.quantization.output_names import exportable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from dfq_brevitas.options import Target
    from dfq_plugins.types import Artifact, Check, Inputs, Specification

    Sample = tuple[torch.Tensor, ...]

QONNX_FILE, QCDQ_FILE = "model.qonnx.onnx", "model.qcdq.onnx"
_OPSET = 13  # the first with per-channel QuantizeLinear; FINN does not read later ones reliably


def export_onnx(
    graph: GraphModule,
    samples: Inputs,
    folder: Path,
    *,
    spec: Specification,
    with_qcdq: bool = True,
    target: Target = "generic",
    dynamic_sizes: bool = False,
) -> tuple[Artifact, ...]:
    """Write both files to `folder`, compare each with the model on `samples`, and only then rename it.

    Args:
        graph: a converted model.
        samples: inputs `(samples, *shape)` to compare on.
        folder: where to write; created if it does not exist.
        spec: the specification of the inputs, with the number of classes.
        with_qcdq: also write the QCDQ file, which cannot represent binary weights.
        target: what the QONNX file is for; for FINN, it is also checked against FINN's rules.
        dynamic_sizes: whether the spatial axes of the inputs are open in the QCDQ file.

    Raises:
        ArtifactError: a file cannot be written in its format, or does not agree with the model.
        DataError: the folder cannot be written.
    """
    private = copy.deepcopy(graph).cpu().eval()
    take_inputs_in_order(private)
    settings: dict[str, Any] = {"graph": private, "samples": samples, "spec": in_order(spec)}
    write, check = (_write_finn, check_finn) if target == "finn" else (_write_qonnx, check_qonnx)
    sample, names = ordered(rows(samples, slice(1))), tuple(spec.named)
    written = partial(write, private, sample, names)
    recipes = [ArtifactRecipe(folder / QONNX_FILE, "QONNX", written, partial(check, **settings))]
    if with_qcdq:
        written = partial(_write_qcdq, private, sample, open_axes(spec, sizes=dynamic_sizes))
        check_file = partial(check_qcdq, **settings, dynamic_sizes=dynamic_sizes)
        recipes.append(ArtifactRecipe(folder / QCDQ_FILE, "QCDQ ONNX", written, check_file))
    with silenced(NOTICES), weights_quantized_once(private):
        return write_artifacts(recipes)


def _write_qonnx(graph: GraphModule, sample: Sample, names: tuple[str, ...], path: Path) -> None:
    network, outputs = exportable(copy.deepcopy(graph), sample, names)
    written = partial(export_qonnx, network, args=sample, export_path=str(path), **_settings(names, outputs))
    export_at(_OPSET, lambda opset: written(opset_version=opset))
    # The first step of every QONNX flow, including FINN's: fold constants, infer shapes, name nodes.
    model = clean_qonnx(onnx.load(path))
    give_parameters_a_rank(model.graph)
    onnx.save(model, path)


def _write_finn(graph: GraphModule, sample: Sample, names: tuple[str, ...], path: Path) -> None:
    _write_qonnx(graph, sample, names, path)
    finn_onnx(ModelWrapper(str(path))).save(str(path))


def _write_qcdq(graph: GraphModule, sample: Sample, input_axes: dict[str, dict[int, str]], path: Path) -> None:
    names = tuple(input_axes)
    network, outputs = exportable(graph, sample, names)
    axes = {**input_axes, **{name: {0: "batch"} for name in outputs}}
    # Without a copy, which costs seconds: Brevitas leaves the graph as it was, and where it fails, nothing follows.
    settings = {"export_path": str(path), "dynamic_axes": axes, **_settings(names, outputs)}
    export_at(_OPSET, lambda opset: export_onnx_qcdq(network, args=sample, opset_version=opset, **settings))


def _settings(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    # Brevitas's exporter through torch.export cannot write quantized biases; TorchScript's writes both formats.
    return {"dynamo": False, "input_names": list(inputs), "output_names": list(outputs)}


def check_qonnx(path: Path, *, graph: GraphModule, samples: Inputs, spec: Specification) -> tuple[Check, ...]:
    """Compare a QONNX file with the torch model, run as one graph of standard operators.

    Raises:
        ArtifactError: the file cannot be run, or does not agree with the model.
    """
    model, quantizers = lowered(onnx.load(path))
    run, classes = partial(torch_run, graph, spec=spec), spec.num_classes
    weights = torch_weights(graph)
    return check_onnx(model, quantizers, weights, run, samples, num_classes=classes, as_users_run=False)


def check_finn(path: Path, *, graph: GraphModule, samples: Inputs, spec: Specification) -> tuple[Check, ...]:
    """Compare a QONNX file with the torch model, and check it against FINN's rules.

    Raises:
        ArtifactError: the file cannot be run, does not agree with the model, or breaks a rule.
    """
    rules = check_finn_rules(path)  # first: a broken rule says more than the wrong integers that it causes
    return (*check_qonnx(path, graph=graph, samples=samples, spec=spec), rules)


def check_qcdq(
    path: Path, *, graph: GraphModule, samples: Inputs, spec: Specification, dynamic_sizes: bool = False
) -> tuple[Check, ...]:
    """Compare a QCDQ file with the torch model, and report what ONNX Runtime's default session computes.

    Raises:
        ArtifactError: the file cannot be run, or does not agree with the model.
    """
    model = onnx.load(path)
    quantizers = tuple(qdq_quantizers(model.graph))
    run = partial(torch_run, graph, spec=spec)
    checks = check_onnx(model, quantizers, torch_weights(graph), run, samples, num_classes=spec.num_classes)
    return (*checks, check_other_sizes(model, graph, spec)) if dynamic_sizes else checks


def load_exported(path: Path) -> OnnxModule:
    """Return a module that runs a QONNX or a QCDQ file in ONNX Runtime.

    QONNX's quantizers are rewritten in standard operators; QCDQ has no others.

    Raises:
        DataError: the file is damaged.
    """
    return load_onnx(path, rewrite=lambda model: lowered(model)[0], structured=True)


def run_qonnx(path: Path, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run a QONNX file with `qonnx`'s executor, sample by sample, and return its outputs `(samples, ...)`."""
    model = ModelWrapper(str(path))
    names = model.graph.input[0].name, model.graph.output[0].name
    outputs = [execute_onnx(model, {names[0]: sample[np.newaxis]})[names[1]] for sample in inputs]
    return np.concatenate(outputs)
