"""Writes a converted model as a TorchScript program, and keeps it only if it computes the same when loaded.

TorchScript is the only torch format that can hold torch.ao's packed int8 weights: `torch.export` rejects their class
(no `__obj_flatten__`). The archive loads without the classes of this package.
"""

from __future__ import annotations

import io
import json
import linecache
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.jit.frontend import FrontendError

from dfq_plugins.errors import ArtifactError, DataError, UsageError, first_line
from dfq_plugins.network.outputs import nested_outputs
from dfq_plugins.quantization.artifacts import ArtifactRecipe, write_artifacts
from dfq_plugins.quantization.output_names import exportable, path_of
from dfq_plugins.types import Check
from dfq_shared.programs import compare_program
from dfq_torch_ao.engines import active_engine, resolve_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch.fx import GraphModule

    from dfq_plugins.types import Artifact, Inputs, InputSpec, Specification

FILE_NAME = "model.torchscript.pt"
_CHECKED_SAMPLES = 16
_TOLERANCE = 1e-5
_ENGINE = "dfq_engine"
"""Name under which the archive holds the engine that its weights are packed for."""
_OUTPUTS = "dfq_outputs"
"""Name under which the archive of a traced program holds the paths of its outputs, which are then a tuple."""
_INPUTS = "dfq_inputs"
"""Name under which it holds the names of the inputs that the network takes by keyword, which are then positional."""


def export_torchscript(converted: nn.Module, spec: Specification, folder: Path, engine: str) -> tuple[Artifact, ...]:
    """Write `converted` to `folder`, load the file, compare both on random inputs, and only then rename it.

    Raises:
        ArtifactError: the model has no TorchScript form, or the loaded program computes something else.
        DataError: the folder cannot be written.
    """
    inputs = _random_inputs(spec)
    how: list[str] = []

    def write(path: Path) -> None:
        program, made_by, names = _to_torchscript(converted, inputs, spec)
        how.append(made_by)
        buffer = io.BytesIO()  # for a path that it cannot write, TorchScript raises a RuntimeError instead of OSError
        taken = list(spec.arguments(inputs)[1])
        notes = {_ENGINE: engine} | ({_OUTPUTS: json.dumps(names), _INPUTS: json.dumps(taken)} if names else {})
        torch.jit.save(program, buffer, _extra_files=notes)
        path.write_bytes(buffer.getvalue())

    def check(path: Path) -> tuple[Check, ...]:
        program = Check("program", f"{how[0]}, for torch.backends.quantized.engine = {engine!r}")
        loaded = load_torchscript(path)
        return program, compare_program(
            converted, loaded, inputs, spec, kind="TorchScript program", tolerance=_TOLERANCE
        )

    return write_artifacts([ArtifactRecipe(folder / FILE_NAME, "TorchScript", write, check)])


def load_torchscript(path: Path, *, default_engine: str = "auto") -> nn.Module:
    """Load a program on the CPU and pack its weights for the engine that the file names.

    It returns what the network does. If TorchScript has no form for that structure, lists come back as tuples, records
    as dictionaries, and what is not a tensor is left out.

    Args:
        path: a file that `export_torchscript` wrote.
        default_engine: engine for a program that names none.

    Raises:
        UsageError: this build of torch does not have the engine.
        DataError: the file cannot be read, or is not a TorchScript archive.
    """
    load: Any = torch.jit.load  # untyped in torch
    try:
        content = path.read_bytes()
        named, outputs, inputs = (_note(content, key) for key in (_ENGINE, _OUTPUTS, _INPUTS))
        names = None if outputs is None else tuple(map(str, json.loads(outputs)))
        keywords = () if inputs is None else tuple(map(str, json.loads(inputs)))
    except (OSError, zipfile.BadZipFile, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(path, error) from error
    try:
        engine = resolve_engine(named or default_engine)
    except UsageError as error:
        raise UsageError(
            f"The weights of {path} are packed for the engine {named or default_engine!r}, which this build of torch "
            "does not have. Load it with another build, or quantize for an engine that this one has."
        ) from error
    with active_engine(engine):
        try:
            program: nn.Module = load(io.BytesIO(content), map_location="cpu")
        except RuntimeError as error:  # all that torch's reader raises
            raise _damaged(path, error) from error
    return (program if names is None else _Structured(program, names, keywords)).eval()


class _Structured(nn.Module):
    """A program that returns a tuple, as a module that returns the structure of the network that it was traced from."""

    def __init__(self, program: nn.Module, names: tuple[str, ...], keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.program, self.names, self.keywords = program, names, keywords

    def forward(self, *inputs: Any, **named: torch.Tensor) -> Any:
        returned = self.program(*inputs, *(named[name] for name in self.keywords[len(inputs) :]))
        parts = (returned,) if isinstance(returned, torch.Tensor) else returned
        return nested_outputs(dict(zip(self.names, parts, strict=True)))


def _note(content: bytes, key: str) -> str | None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        noted = next((name for name in archive.namelist() if name.endswith(f"/extra/{key}")), None)
        return None if noted is None else archive.read(noted).decode()


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} must be a readable TorchScript archive, but: {first_line(error).rstrip('.')}. Export it again."
    )


def drop_tensor_annotations(converted: GraphModule) -> None:
    """Remove `torch.Tensor` annotations from a graph, in place, so that `torch.jit.script` accepts it.

    FX writes them into its code as `_torch_Tensor_`, a name unknown to TorchScript, which treats unannotated values as
    tensors anyway.
    """
    for node in converted.graph.nodes:
        if node.type in (torch.Tensor, "torch.Tensor", "Tensor"):  # strings if annotations are postponed
            node.type = None
    converted.recompile()


def _to_torchscript(converted: nn.Module, inputs: Inputs, spec: Specification) -> tuple[Any, str, tuple[str, ...]]:
    """Return the model's program: scripted, or traced if its source cannot be scripted.

    Also return how it was made and, if it returns a tuple instead of the model's structure, the paths of its outputs.
    """
    trace: Any = torch.jit.trace  # untyped in torch
    try:
        _require_uniform(converted, inputs, spec)
        with _own_source(converted):
            return torch.jit.script(converted), "torch.jit.script", ()
    except (RuntimeError, OSError, TypeError, FrontendError) as unscriptable:
        try:
            # A graph takes inputs by keyword also in their order, which is all that tracing needs.
            positional, keywords = spec.arguments(inputs)
            arguments = (*positional, *keywords.values())
            network, names = exportable(converted, arguments)
            paths = () if network is converted else tuple(map(path_of, names))
            return trace(network, arguments), "torch.jit.trace", paths
        except RuntimeError as error:
            raise ArtifactError(
                f"This model has no TorchScript form: {error}. Rewrite the operation that the error names, or use the "
                "converted model in Python without exporting it."
            ) from unscriptable


@torch.no_grad()
def _require_uniform(converted: nn.Module, inputs: Inputs, spec: Specification) -> None:
    """Reject dictionaries of anything other than tensors, which TorchScript reads back as unions.

    Raises:
        TypeError: there is one.
    """
    parts = [spec.run(converted, inputs)]
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and not all(isinstance(value, torch.Tensor) for value in part.values()):
            raise TypeError("TorchScript has no dictionary of mixed types")
        if isinstance(part, (list, tuple)):
            parts += part


@contextmanager
def _own_source(converted: nn.Module) -> Iterator[None]:
    """Make `torch.jit.script` read the source of exactly this graph.

    Brevitas bundles a copy of FX that also numbers its generated file names from zero. If both are in use, their
    entries in Python's cache of source lines can collide, and another model's program would be compiled.
    """
    code = getattr(converted, "code", None)
    name = type(converted).forward.__code__.co_filename
    if code is None:
        yield
        return
    former = linecache.cache.get(name)
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        yield
    finally:
        if former is None:
            del linecache.cache[name]
        else:
            linecache.cache[name] = former


def _random_inputs(spec: Specification) -> Inputs:
    """Return inputs within the known range, otherwise standard normal ones, from a private random generator."""
    rng = torch.Generator().manual_seed(0)

    def drawn(one: InputSpec) -> torch.Tensor:
        if one.input_range is None:
            return torch.randn(_CHECKED_SAMPLES, *one.shape, generator=rng)
        lowest, highest = one.input_range
        return lowest + (highest - lowest) * torch.rand(_CHECKED_SAMPLES, *one.shape, generator=rng)

    return spec.map(drawn)
