"""Exported programs: made from a converted model, saved, and loaded back without Python's pickle."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from dfq_plugins.errors import DataError, first_line
from dfq_plugins.inputs import map_inputs, moved, random_inputs
from dfq_plugins.model_state import device_of
from dfq_torchao.capture import allow_modes, batch_size

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import Specification

_SAMPLES = 2


def program_of(converted: nn.Module, spec: Specification, *, fixed_batch: int | None = None) -> Any:
    """Return a converted model as a `torch.export.ExportedProgram` on the CPU, called like the network.

    Args:
        converted: the model.
        spec: its inputs.
        fixed_batch: number of samples to fix the batch to; None leaves it free.
    """
    inputs = moved(random_inputs(spec, fixed_batch or _SAMPLES), device_of(converted))
    positional, keywords = spec.arguments(inputs)
    free = fixed_batch is None
    batch = batch_size() if free else None
    sizes: Any = None
    if free and keywords:
        sizes = {name: {0: batch} for name in keywords}
    elif free:
        sizes = tuple(map_inputs(lambda _: {0: batch}, value) for value in positional)
    program: Any = torch.export.export(converted, positional, keywords, dynamic_shapes=sizes)
    if device_of(converted).type != "cpu":
        program = move_to_device_pass(program, "cpu")
    return program


def save_program(program: Any, path: Path) -> None:
    """Write an exported program without its example inputs, the only part that torch pickles."""
    example, program.example_inputs = program.example_inputs, None
    buffer = io.BytesIO()  # for a path with another ending, torch logs a warning
    try:
        torch.export.save(program, buffer)
    finally:
        program.example_inputs = example
    path.write_bytes(buffer.getvalue())


def load_program(path: Path) -> nn.Module:
    """Load an exported program as a module on the CPU.

    Raises:
        DataError: the file cannot be read, or holds pickled objects.
    """
    try:
        content = path.read_bytes()
        _require_no_pickle(content, path)
        program: Any = torch.export.load(io.BytesIO(content))
        graph = program.module()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} must be a readable program of torch.export, but: {first_line(error).rstrip('.')}. Export it again."
        ) from error
    return allow_modes(graph)


def _require_no_pickle(content: bytes, path: Path) -> None:
    """Refuse an archive with pickled weights, constants or example inputs, all of which torch would load.

    Raises:
        DataError: it has some, or it is not an archive of this kind.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        configs = [json.loads(archive.read(infos[name])) for name in infos if name.endswith("_config.json")]
    tensors = [tensor for config in configs for tensor in config["config"].values()]
    examples = any(name.startswith("data/sample_inputs/") and info.file_size for name, info in infos.items())
    foreign = any(name.endswith((".pt", ".pkl")) and info.file_size for name, info in infos.items())
    pickled = any(tensor["use_pickle"] or "obj" in tensor["path_name"] for tensor in tensors)
    if "models/model.json" not in infos or examples or foreign or pickled:
        raise DataError(
            f"{path} must be an exported program without pickled objects, as dfq-plugins writes it, but it holds some, "
            "or is another kind of archive. Load only files of an export here; load others with torch.export.load if "
            "you trust them."
        )
