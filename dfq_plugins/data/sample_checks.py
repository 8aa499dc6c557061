"""Checks that a generator's samples are what the plan asks for, before they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.errors import DataError
from dfq_plugins.types import Batch

if TYPE_CHECKING:
    import torch

    from dfq_plugins.data.plan import ShardPlan
    from dfq_plugins.types import InputSpec


def checked_batch(
    shard: ShardPlan,
    spec: InputSpec,
    inputs: torch.Tensor,
    labels: torch.Tensor | None,
    logits: torch.Tensor | None,
) -> Batch:
    """Return the tensors as a shard stores them: on the CPU, contiguous, float32 and int64.

    Raises:
        DataError: a count, shape or type is not as planned, or a value is not finite.
    """
    _check_shape(shard, "inputs", inputs, (shard.num_samples, *spec.shape))
    if labels is not None:
        _check_shape(shard, "labels", labels, (shard.num_samples,))
        if labels.is_floating_point():
            raise DataError(f"Shard {shard.index} needs whole numbers as labels, got {labels.dtype}.")
    if logits is not None:
        # Without known classes, any width will do as long as the logits are a matrix.
        classes = spec.num_classes or (logits.shape[-1] if logits.dim() else 0)
        _check_shape(shard, "logits", logits, (shard.num_samples, classes))
    return Batch(
        _finite(shard, "inputs", inputs),
        None if labels is None else _stored(labels.long()),
        None if logits is None else _finite(shard, "logits", logits),
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


def _finite(shard: ShardPlan, name: str, tensor: torch.Tensor) -> torch.Tensor:
    stored = _stored(tensor.float())
    broken = int((~stored.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise DataError(
            f"Shard {shard.index} needs finite {name}, but {broken} of {shard.num_samples} samples hold NaN or "
            "infinity. Nothing was written; lower the learning rate, or look for NaN in the model."
        )
    return stored


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
