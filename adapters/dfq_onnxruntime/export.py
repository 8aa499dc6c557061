"""Writes a quantized program to a file, checks the file, and loads it back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import onnx

from dfq_onnxruntime.coverage import DEQUANTIZE, QUANTIZE
from dfq_plugins.errors import ArtifactError
from dfq_plugins.inputs import count, rows
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.quantization.artifacts import ArtifactRecipe, compare, write_artifacts
from dfq_plugins.quantization.onnx_module import OnnxModule, load_onnx
from dfq_plugins.types import Check

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import Artifact, Inputs, Specification

FILE_NAME = "model_int8.onnx"

STRUCTURE = "dfq_outputs"
"""Metadata key of files whose names of outputs describe the structure that the torch network returned."""

STRUCTURED = "structured"

LARGEST_DIFFERENCE = 1e-4
"""Largest difference of an output, as a share of the largest one, between the file and the model: both hold one program
and run in one engine."""


def export_program(model: OnnxModule, spec: Specification, folder: Path, *, samples: Inputs) -> tuple[Artifact, ...]:
    """Write a quantized model to `folder`, check the file, and keep it if it passes.

    Args:
        model: the converted model.
        spec: its inputs.
        folder: where to write; created if it does not exist.
        samples: inputs `(samples, *shape)` to compare on.

    Raises:
        ArtifactError: the file does not compute what the model does.
        DataError: the folder cannot be written.
    """
    form = "ONNX, QuantizeLinear/DequantizeLinear"
    check = partial(_check, model=model, spec=spec, samples=samples)
    return write_artifacts([ArtifactRecipe(folder / FILE_NAME, form, partial(_write, model), check)])


def load_program(path: Path) -> nn.Module:
    """Return a file as a module that returns what the exported network does.

    Raises:
        DataError: the file cannot be read.
    """
    loaded = load_onnx(path, exact=False)
    noted = {entry.key: entry.value for entry in onnx.load_from_string(loaded.program).metadata_props}
    loaded.structured = noted.get(STRUCTURE) == STRUCTURED
    return loaded


def _write(model: OnnxModule, path: Path) -> None:
    proto = onnx.load_from_string(model.program)
    if model.structured:
        entry = proto.metadata_props.add()
        entry.key, entry.value = STRUCTURE, STRUCTURED
    onnx.save(proto, path)


def _check(path: Path, *, model: OnnxModule, spec: Specification, samples: Inputs) -> tuple[Check, ...]:
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    loaded = load_program(path)
    difference = _require_equal(loaded, model, spec, samples)
    exact = OnnxModule(loaded.program, structured=loaded.structured)  # type: ignore[arg-type]  # nn.Module has no program
    return (
        _structure(proto),
        Check("loaded and run in ONNX Runtime", difference),
        Check("its int8 kernels on this processor against exact arithmetic", _compared(exact, model, spec, samples)),
    )


def _structure(proto: Any) -> Check:
    kinds = [node.op_type for node in proto.graph.node]
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return Check(
        "structure", f"{kinds.count(QUANTIZE)} {QUANTIZE}, {kinds.count(DEQUANTIZE)} {DEQUANTIZE}; opset {opset}"
    )


def _require_equal(loaded: nn.Module, model: nn.Module, spec: Specification, samples: Inputs) -> str:
    """Run one sample and all of them through the file and the model; return how they compare.

    Raises:
        ArtifactError: they differ.
    """
    found = ""
    for batch in (rows(samples, slice(_least(loaded))), _whole(samples, _least(loaded))):
        pairs = _outputs(model, loaded, spec, batch)
        for name, (expected, got) in pairs.items():
            difference = compare(expected, got, None)
            largest = max(float(expected.abs().max()), 1e-6)
            if not difference.largest <= LARGEST_DIFFERENCE * largest:
                raise ArtifactError(
                    f"The file must compute what the model does, but {name} differs on {difference}. Report the model.",
                    faults=(f"{name}: {difference}",),
                )
        found = "; ".join(f"{name}: {compare(*pair, spec.num_classes)}" for name, pair in pairs.items())
    return found


def _compared(exact: nn.Module, model: nn.Module, spec: Specification, samples: Inputs) -> str:
    pairs = _outputs(exact, model, spec, _whole(samples, _least(exact)))
    return "; ".join(f"{name}: {compare(*pair, spec.num_classes)}" for name, pair in pairs.items())


def _outputs(first: nn.Module, second: nn.Module, spec: Specification, batch: Inputs) -> dict[str, tuple[Any, Any]]:
    ours, theirs = (named_outputs(spec.run(network, batch)) for network in (first, second))
    return {name: (ours[name], theirs[name]) for name in ours}


def _least(module: Any) -> int:
    """Return the number of samples of the smallest batch that a program takes."""
    sizes = [value.shape[0] for value in module.session.get_inputs() if value.shape]
    return next((size for size in sizes if isinstance(size, int)), 1)


def _whole(samples: Inputs, size: int) -> Inputs:
    return rows(samples, slice(count(samples) // size * size))
