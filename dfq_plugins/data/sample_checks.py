"""Checks a generator's samples against the plan before they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dfq_plugins.errors import DataError
from dfq_plugins.types import Batch, InputSpec

if TYPE_CHECKING:
    import torch

    from dfq_plugins.data.plan import ShardPlan
    from dfq_plugins.types import Inputs, Specification


def checked_batch(
    shard: ShardPlan,
    spec: Specification,
    inputs: Inputs,
    labels: torch.Tensor | None,
    outputs: Mapping[str, torch.Tensor] | None,
) -> Batch:
    """Return the tensors as a shard stores them: on the CPU, contiguous, float32 and int64.

    Raises:
        DataError: a count, shape or type does not match the plan, or a value is not finite.
    """
    _check_names(shard, spec, inputs)

    def checked_input(name: str, shape: tuple[int, ...], tensor: torch.Tensor) -> torch.Tensor:
        _check_shape(shard, name, tensor, (shard.num_samples, *shape))
        return _finite_storage(shard, name, tensor)

    stored: Inputs
    if isinstance(spec, InputSpec):
        stored = checked_input("inputs", spec.shape, inputs)
    else:
        stored = {
            name: checked_input(f"the input {name!r}", one.shape, inputs[name]) for name, one in spec.inputs.items()
        }
    if labels is not None:
        _check_shape(shard, "labels", labels, (shard.num_samples,))
        if labels.is_floating_point():
            raise DataError(f"Shard {shard.index} needs integer labels, got {labels.dtype}. Yield class numbers.")
    for name, output in (outputs or {}).items():
        _check_shape(shard, f"outputs.{name}", output, (shard.num_samples, *output.shape[1:]))
    return Batch(
        stored,
        None if labels is None else _to_storage(labels.long()),
        {name: _finite_storage(shard, f"outputs.{name}", output) for name, output in outputs.items()}
        if outputs
        else None,
    )


def _check_names(shard: ShardPlan, spec: Specification, inputs: Inputs) -> None:
    wanted = None if isinstance(spec, InputSpec) else set(spec.inputs)
    given = set(inputs) if isinstance(inputs, Mapping) else None
    if given != wanted:
        names, found = ("one tensor" if part is None else ", ".join(sorted(part)) for part in (wanted, given))
        raise DataError(
            f"Shard {shard.index} needs the inputs of the specification ({names}), got {found}. A generator must "
            "yield inputs in the form that its specification has."
        )


def _check_shape(shard: ShardPlan, name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    found = tuple(tensor.shape)
    if found[:1] != expected[:1]:
        count = found[0] if found else 0
        raise DataError(
            f"Shard {shard.index} needs exactly {expected[0]} samples, got {name} for {count}. "
            "A generator must yield exactly num_samples."
        )
    if found != expected:
        raise DataError(
            f"Shard {shard.index} needs {name} of shape {expected}, got {found}. "
            "A generator must follow the input specification."
        )


def _finite_storage(shard: ShardPlan, name: str, tensor: torch.Tensor) -> torch.Tensor:
    stored = _to_storage(tensor.float())
    broken = int((~stored.isfinite()).reshape(len(stored), -1).any(1).sum())
    if broken:
        advice = (
            "They are what the network returns: check its weights, and the range of the inputs."
            if name.startswith("outputs")
            else "Lower the learning rate, or check the model for NaN."
        )
        raise DataError(
            f"Shard {shard.index} needs finite {name}, but {broken} of {shard.num_samples} samples contain NaN or "
            f"infinity. Nothing was written. {advice}"
        )
    return stored


def _to_storage(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
