"""Writes a converted model in the forms that run without dfq-plugins, and keeps each only if it computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.errors import ArtifactError, UsageError
from dfq_plugins.inputs import count, random_inputs, rows
from dfq_plugins.quantization.artifacts import ArtifactRecipe, write_artifacts
from dfq_plugins.types import Check
from dfq_shared.processor import saturates_pairs
from dfq_shared.programs import compare_program, described, program_differences
from dfq_torchao.aot_inductor import compile_package, load_package
from dfq_torchao.executorch import load_executorch, write_executorch
from dfq_torchao.programs import load_program, program_of, save_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import Artifact, Inputs, Specification
    from dfq_torchao.run import Run

EXPORTED = ".exported.pt2"
COMPILED = ".aotinductor.pt2"
EXECUTORCH = ".pte"
_CHECKED_SAMPLES = 16
_TOLERANCE = 1e-5
_LARGEST_DEVIATION = 0.1
"""Largest mean difference of a compiled program, as a share of the outputs' standard deviation.

Its kernels round in other places, so values fall on the next level here and there; a wrong kernel is off by far more.
"""


def export_programs(converted: nn.Module, spec: Specification, folder: Path, run: Run) -> tuple[Artifact, ...]:
    """Write every program that the options ask for to `folder`, load and compare each, and only then rename it.

    Raises:
        ArtifactError: a program cannot be made, or computes something else.
        DataError: the folder cannot be written.
    """
    return write_artifacts(_recipes(converted, spec, folder, run))


def load_artifact(path: Path) -> nn.Module:
    """Return a module that runs an exported file, by the ending of its name.

    Raises:
        UsageError: the file has another ending.
        DataError: the file is damaged.
    """
    for ending, load in ((EXPORTED, load_program), (COMPILED, load_package), (EXECUTORCH, load_executorch)):
        if path.name.endswith(ending):
            return load(path)
    raise UsageError(
        f"torchao loads files that end with {EXPORTED}, {COMPILED} or {EXECUTORCH}, got {path.name}. Give the file the "
        "name that its export gave it."
    )


def _recipes(converted: nn.Module, spec: Specification, folder: Path, run: Run) -> Iterator[ArtifactRecipe]:
    inputs = random_inputs(spec, _CHECKED_SAMPLES)

    def check_exported(path: Path) -> tuple[Check, ...]:
        loaded = load_program(path)
        return (compare_program(converted, loaded, inputs, spec, kind="exported program", tolerance=_TOLERANCE),)

    yield ArtifactRecipe(
        folder / f"model{EXPORTED}",
        "torch.export",
        lambda path: save_program(program_of(converted, spec), path),
        check_exported,
    )
    batch = run.options.compiled_batch
    if run.options.aot_inductor:
        yield ArtifactRecipe(
            folder / f"model{COMPILED}",
            "AOTInductor",
            lambda path: compile_package(program_of(converted, spec, fixed_batch=batch), path, batch),
            lambda path: _check_compiled(converted, load_package(path), inputs, spec, run),
        )
    if run.options.quantizer == "xnnpack":
        yield ArtifactRecipe(
            folder / f"model{EXECUTORCH}",
            "ExecuTorch (XNNPACK)",
            lambda path: write_executorch(program_of(converted, spec, fixed_batch=1), converted, spec, path),
            lambda path: (_compare_rounded(converted, load_executorch(path), inputs, spec, "ExecuTorch program"),),
        )


def _check_compiled(
    converted: nn.Module, loaded: nn.Module, inputs: Inputs, spec: Specification, run: Run
) -> tuple[Check, ...]:
    reduced = "activations within 0..127" if run.reduced else "activations use all 8 bits"
    vnni = "without VNNI" if saturates_pairs() else "with VNNI"
    machine = Check("compiled", f"for batches of {run.options.compiled_batch}, on a processor {vnni}; {reduced}")
    return machine, _compare_rounded(converted, loaded, inputs, spec, "compiled program")


def _compare_rounded(converted: nn.Module, loaded: nn.Module, inputs: Inputs, spec: Specification, kind: str) -> Check:
    """Compare a program whose kernels round in other places, on all inputs at once and on a single one.

    Raises:
        ArtifactError: it fails, or computes something else.
    """
    agreed: dict[str, str] = {}
    for batch in (inputs, rows(inputs, slice(1))):
        for name, found in program_differences(converted, loaded, batch, spec, kind=kind).items():
            if count(batch) > 1 and not found.deviation <= _LARGEST_DEVIATION:
                raise ArtifactError(
                    f"The {kind} must compute what the torch model does, but on the output {name!r} of {found}. On "
                    "processors without VNNI, set reduce_range=true; otherwise use the converted model in Python.",
                    faults=(f"{name}: {found}",),
                )
            agreed.setdefault(name, str(found))
    return Check("loaded and run", f"on random inputs, {described(agreed)}")
