"""Compares a program that was loaded from a file with the model that it was made from: both run the same kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import ArtifactError, first_line
from dfq_plugins.inputs import cloned, count, rows
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.quantization.artifacts import OutputDifference, compare
from dfq_plugins.types import Check

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Inputs, Specification

_NEXT_STEP = "Use the converted model in Python instead."


def compare_program(
    converted: nn.Module, loaded: nn.Module, inputs: Inputs, spec: Specification, *, kind: str, tolerance: float
) -> Check:
    """Compare two models on all inputs at once and on a single one.

    Args:
        converted: the model that was exported.
        loaded: the program, as a module.
        inputs: inputs `(samples, *shape)`.
        spec: specification of the inputs.
        kind: name of the program in messages: "TorchScript program".
        tolerance: largest difference allowed between two values.

    Raises:
        ArtifactError: the loaded model fails, or the outputs differ by more than the tolerance.
    """
    agreed: dict[str, str] = {}
    for batch in (inputs, rows(inputs, slice(1))):
        for name, found in program_differences(converted, loaded, batch, spec, kind=kind).items():
            if not found.largest <= tolerance:
                of_output = "" if name == "output" else f"the output {name!r} of "
                raise ArtifactError(
                    f"The {kind} must compute what the torch model does, but on {of_output}{found}. {_NEXT_STEP}"
                )
            agreed.setdefault(name, str(found))
    return Check("loaded and run", f"on random inputs, {described(agreed)}")


def described(differences: dict[str, str]) -> str:
    """Return the differences of all outputs as text.

    >>> described({"output": "equal"}), described({"a": "equal", "b": "equal"})
    ('equal', 'a: equal; b: equal')
    """
    if len(differences) == 1:
        return next(iter(differences.values()))
    return "; ".join(f"{name}: {found}" for name, found in differences.items())


def program_differences(
    converted: nn.Module, loaded: nn.Module, batch: Inputs, spec: Specification, *, kind: str
) -> dict[str, OutputDifference]:
    """Return the difference of each output by name.

    Raises:
        ArtifactError: the loaded model fails, or returns other outputs.
    """
    expected, got = _outputs(converted, batch, spec), _loaded_outputs(loaded, batch, spec, kind)
    if list(expected) != list(got):
        raise ArtifactError(
            f"The {kind} must return the torch model's outputs, {', '.join(expected)}, but returns "
            f"{', '.join(got)}. {_NEXT_STEP}"
        )
    return {name: compare(output, got[name], spec.num_classes) for name, output in expected.items()}


def _loaded_outputs(loaded: nn.Module, batch: Inputs, spec: Specification, kind: str) -> dict[str, torch.Tensor]:
    try:
        return _outputs(loaded, batch, spec)
    except RuntimeError as error:
        raise ArtifactError(
            f"The {kind} must run for every batch size, but fails with {count(batch)} samples: {first_line(error)}. "
            f"{_NEXT_STEP}"
        ) from error


@torch.no_grad()
def _outputs(model: nn.Module, batch: Inputs, spec: Specification) -> dict[str, torch.Tensor]:
    return {name: output.float() for name, output in named_outputs(spec.run(model, cloned(batch))).items()}
