"""Writes a converted model as a TorchScript program, and keeps it only if it computes the same when loaded.

TorchScript is the only torch format that can hold torch.ao's packed int8 weights: `torch.export` rejects their class
(no `__obj_flatten__`). The archive loads without the classes of this package.
"""

from __future__ import annotations

import io
import linecache
import zipfile
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.jit.frontend import FrontendError
from torch.utils import _pytree as pytree

from dfq_plugins.errors import ArtifactError, DataError, UsageError, first_line
from dfq_plugins.inputs import cloned, count, rows
from dfq_plugins.quantization.artifacts import ArtifactRecipe, OutputAgreement, compare, write_artifacts
from dfq_plugins.types import Check
from dfq_torch_ao.engines import active_engine, resolve_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import Artifact, Inputs, InputSpec, Specification

FILE_NAME = "model.torchscript.pt"
_CHECKED_SAMPLES = 16
_TOLERANCE = 1e-5
_ENGINE = "dfq_engine"
"""Name under which the archive holds the engine that its weights are packed for."""


def export_torchscript(converted: nn.Module, spec: Specification, folder: Path, engine: str) -> tuple[Artifact, ...]:
    """Write `converted` to `folder`, load the file, compare both on random inputs, and only then rename it.

    Raises:
        ArtifactError: the model has no TorchScript form, or the loaded program computes something else.
        DataError: the folder cannot be written.
    """
    inputs = _random_inputs(spec)
    run = partial(_outputs, spec=spec)
    how: list[str] = []

    def write(path: Path) -> None:
        program, made_by = _to_torchscript(converted, inputs, spec)
        how.append(made_by)
        buffer = io.BytesIO()  # for a path that it cannot write, TorchScript raises a RuntimeError instead of OSError
        torch.jit.save(program, buffer, _extra_files={_ENGINE: engine})
        path.write_bytes(buffer.getvalue())

    def check(path: Path) -> tuple[Check, ...]:
        program = Check("program", f"{how[0]}, for torch.backends.quantized.engine = {engine!r}")
        classifies = spec.num_classes is not None
        return program, compare_outputs(converted, load_torchscript(path), inputs, run, classifies=classifies)

    return write_artifacts([ArtifactRecipe(folder / FILE_NAME, "TorchScript", write, check)])


def load_torchscript(path: Path, *, default_engine: str = "auto") -> nn.Module:
    """Load a program on the CPU and pack its weights for the engine that the file names.

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
        named = _engine_of(content)
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError, RuntimeError) as error:
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
    return program.eval()


def _engine_of(content: bytes) -> str | None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        noted = next((name for name in archive.namelist() if name.endswith(f"/extra/{_ENGINE}")), None)
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


def _to_torchscript(converted: nn.Module, inputs: Inputs, spec: Specification) -> tuple[Any, str]:
    """Return the model's program: scripted, or traced if its source cannot be scripted."""
    trace: Any = torch.jit.trace  # untyped in torch
    try:
        with _own_source(converted):
            return torch.jit.script(converted), "torch.jit.script"
    except (RuntimeError, OSError, TypeError, FrontendError) as unscriptable:
        try:
            # A graph takes inputs by keyword also in their order, which is all that tracing needs.
            positional, keywords = spec.arguments(inputs)
            return trace(converted, (*positional, *keywords.values())), "torch.jit.trace"
        except RuntimeError as error:
            raise ArtifactError(
                f"This model has no TorchScript form: {error}. Rewrite the operation that the error names, or use the "
                "converted model in Python without exporting it."
            ) from unscriptable


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


def compare_outputs(
    converted: nn.Module,
    loaded: nn.Module,
    inputs: Inputs,
    run: Callable[[nn.Module, Inputs], list[torch.Tensor]],
    *,
    classifies: bool,
) -> Check:
    """Compare two models on all inputs at once and on a single one: both run the same kernels.

    Raises:
        ArtifactError: the loaded model fails, or they differ by more than 1e-5.
    """
    worst: OutputAgreement | None = None
    for batch in (inputs, rows(inputs, slice(1))):
        for expected, got in zip(run(converted, batch), _loaded_outputs(loaded, batch, run), strict=True):
            found = compare(expected, got, classifies=classifies)
            if not found.largest <= _TOLERANCE:
                raise ArtifactError(
                    f"The TorchScript program must compute what the torch model does, but on {found}. Use the "
                    "converted model in Python instead."
                )
            worst = worst or found
    return Check("loaded and run", f"on random inputs, {worst}")


def _loaded_outputs(
    loaded: nn.Module, batch: Inputs, run: Callable[[nn.Module, Inputs], list[torch.Tensor]]
) -> list[torch.Tensor]:
    try:
        return run(loaded, batch)
    except RuntimeError as error:
        raise ArtifactError(
            f"The TorchScript program must run for every batch size, but fails with {count(batch)} samples: {error}. "
            "Use the converted model in Python instead."
        ) from error


@torch.no_grad()
def _outputs(model: nn.Module, batch: Inputs, spec: Specification) -> list[torch.Tensor]:
    outputs = pytree.tree_leaves(spec.run(model, cloned(batch)))
    return [leaf.float() for leaf in outputs if isinstance(leaf, torch.Tensor)]
