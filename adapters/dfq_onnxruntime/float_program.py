"""The float program that is quantized: exported or read from a file, brought to a version, and simplified."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import version_converter
from onnxruntime.quantization.shape_inference import quant_pre_process

from dfq_onnxruntime.framework import quiet_tools
from dfq_onnxruntime.recorded_norms import with_recorded_norms
from dfq_plugins.errors import ModelError, UsageError, first_line
from dfq_plugins.inputs import random_inputs
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.quantization.dynamic_sizes import open_axes
from dfq_plugins.quantization.notices import Notice, silenced
from dfq_plugins.quantization.onnx_exporter import quiet_exporter, write_onnx
from dfq_plugins.quantization.onnx_file import OnnxNetwork
from dfq_plugins.types import InputSpec
from dfq_shared.static_pooling import StaticAdaptivePooling

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Specification

OPSET = 17
"""Version of the operators in a new export: LayerNormalization is one of them."""

NOTICES = (Notice("Converting a tensor to a Python|torch.tensor results are registered|Iterating over a tensor"),)
"""Sizes that become constants are no loss: the quantized network is compared with the torch network on every run."""


def float_program(model: nn.Module, spec: Specification, least_opset: int) -> bytes:
    """Return a network as a program with BatchNorm folded and shapes inferred.

    Args:
        model: a torch network, or an ONNX file.
        spec: its inputs.
        least_opset: the version of ONNX's operators that the number formats need.

    Raises:
        ModelError: the network cannot be exported, or the file cannot be brought to that version.
        UsageError: the file has other inputs.
    """
    if isinstance(model, OnnxNetwork):
        input_names(model, spec)
        proto = onnx.load_from_string(model.program)
    else:
        proto = _exported(model, spec)
    return simplified(named_nodes(upgraded(proto, least_opset))).SerializeToString()  # type: ignore[no-any-return]


def input_names(program: Any, spec: Specification) -> tuple[str, ...]:
    """Return the names of a file's inputs in the order of the specification.

    Args:
        program: the network, an `OnnxModule`.
        spec: its inputs.

    Raises:
        UsageError: the file has other inputs.
    """
    found = tuple(value.name for value in program.session.get_inputs())
    wanted = found if isinstance(spec, InputSpec) and len(found) == 1 else tuple(spec.named)
    if set(found) != set(wanted):
        raise UsageError(
            f"The ONNX file takes the inputs {', '.join(found)}, but the specification describes {', '.join(wanted)}. "
            "Give an InputSpec for each input under its name in the file."
        )
    return wanted


def _exported(model: nn.Module, spec: Specification) -> Any:
    network = with_recorded_norms(fitted_copy(model).cpu())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        try:
            with quiet_exporter(), silenced(NOTICES), StaticAdaptivePooling():
                axes = open_axes(spec, sizes=False)
                prefix = write_onnx(network, spec, random_inputs(spec, 2), axes, path, opset=OPSET)
        except OSError:
            raise
        except Exception as error:  # torch.onnx raises whatever the model's own forward does
            raise ModelError(
                f"torch.onnx cannot export {type(model).__name__}: {first_line(error)}. Rewrite the operation that the "
                "error names, or export the network yourself, e.g. with torch.onnx.export(..., dynamo=True), and give "
                "the ONNX file."
            ) from error
        proto = onnx.load(path)
    for node in proto.graph.node:
        node.name = node.name.removeprefix(prefix)
    return proto


def upgraded(proto: Any, least_opset: int) -> Any:
    """Return a program with at least this version of ONNX's operators.

    Raises:
        ModelError: ONNX cannot convert it.
    """
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), least_opset)
    if version >= least_opset:
        return proto
    try:
        return version_converter.convert_version(proto, least_opset)
    except Exception as error:  # onnx raises RuntimeError and its own
        raise ModelError(
            f"Quantization needs version {least_opset} of ONNX's operators, but the network has {version}, which onnx "
            f"cannot convert: {first_line(error)}. Export it again with opset_version={least_opset} or later."
        ) from error


def named_nodes(proto: Any) -> Any:
    """Give each node a name that no other has, in place: nodes are left out of the quantization by name."""
    taken = {node.name for node in proto.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            stem = node.name or node.op_type
            node.name = next(name for name in (f"{stem}_{index}", f"{stem}_{index}_") if name not in taken | seen)
        seen.add(node.name)
    return proto


def simplified(proto: Any) -> Any:
    """Return a program with constants and BatchNorm folded and shapes inferred, by ONNX Runtime's own preparation.

    What its optimizer cannot load stays as it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        with quiet_tools():
            # Symbolic inference fails on many networks; ONNX's own knows the rank of every tensor that is quantized.
            quant_pre_process(proto, path, skip_symbolic_shape=True)
        return only_used_domains(named_nodes(onnx.load(path)))


def only_used_domains(proto: Any) -> Any:
    """Remove the versions of operator sets that no node uses, in place: ONNX Runtime lists all that it knows."""
    used = {node.domain for node in _all_nodes(proto.graph)} | {"", "ai.onnx"}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


def _all_nodes(graph: Any) -> Any:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _all_nodes(inner)
