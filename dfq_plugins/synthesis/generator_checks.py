"""Checks what a generator yields against its contract, batch by batch, so that an error names the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import DataError
from dfq_plugins.inputs import count, leaves
from dfq_plugins.types import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dfq_plugins.host.plugin_info import PluginInfo
    from dfq_plugins.types import InputSpec, Specification

_SLACK = 1e-3
"""Share of the range by which rounding may exceed it."""

_REPORT = "Report this to its author."


def check_batch(batch: Any, spec: Specification, info: PluginInfo, *, bounded: bool) -> Batch:
    """Return a batch if it keeps the contract: a `Batch` of dense floating-point inputs within their range.

    Args:
        batch: what the generator yielded.
        spec: the input specification.
        info: the plugin, for the message.
        bounded: whether the generator keeps inputs in their range.

    Raises:
        DataError: it does not; the message names the plugin.
    """
    if not isinstance(batch, Batch):
        raise DataError(f"The {info} yielded a {type(batch).__name__} instead of a Batch(inputs, labels). {_REPORT}")
    given = list(batch.inputs.values()) if isinstance(batch.inputs, Mapping) else [batch.inputs]
    for values in given:
        if not isinstance(values, torch.Tensor):
            raise DataError(f"The {info} yielded inputs of type {type(values).__name__}, not tensors. {_REPORT}")
        if not values.is_floating_point() or values.layout != torch.strided or values.device.type == "meta":
            kind = f"{values.dtype}, {values.layout} on {values.device}"
            raise DataError(f"The {info} must yield dense floating-point inputs, but yielded {kind}. {_REPORT}")
    if bounded and _fits(batch, spec):
        for one, values in zip(spec.named.values(), leaves(batch.inputs), strict=True):
            _check_range(one, values, info)
    return batch


def check_labels(
    made: Sequence[Batch], num_classes: int | None, info: PluginInfo, *, conditional: bool
) -> Tensor | None:
    """Return the labels of a shard; None if the generator yields none.

    Args:
        made: the batches of the shard.
        num_classes: number of classes of the network.
        info: the plugin, for the message.
        conditional: whether the generator says that it makes inputs for given classes.

    Raises:
        DataError: some batches have labels and others do not, a conditional generator yields none, or a label is not a
            class; the message names the plugin.
    """
    given = [batch.labels for batch in made if batch.labels is not None]
    if not given:
        if conditional:
            raise DataError(f"The {info} makes inputs for given classes, but yielded no labels. {_REPORT}")
        return None
    if len(given) != len(made):
        raise DataError(f"The {info} yielded labels in {len(given)} of {len(made)} batches. {_REPORT}")
    for batch in made:
        labels = batch.labels
        if not isinstance(labels, torch.Tensor) or labels.dtype == torch.bool or labels.is_floating_point():
            kind = getattr(labels, "dtype", type(labels).__name__)
            raise DataError(f"The {info} must yield class numbers as integer labels, but yielded {kind}. {_REPORT}")
        if labels.shape != (count(batch.inputs),):
            raise DataError(
                f"The {info} yielded labels of shape {tuple(labels.shape)} for {count(batch.inputs)} samples. {_REPORT}"
            )
        if num_classes and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            wrong = int(labels.max()) if int(labels.max()) >= num_classes else int(labels.min())
            raise DataError(
                f"The {info} yielded the label {wrong}, but the network has {num_classes} classes. {_REPORT}"
            )
    return torch.cat(given)


def _fits(batch: Batch, spec: Specification) -> bool:
    """Return whether the shapes are those of the specification; the writer says what is wrong with others."""
    try:
        return all(
            values.shape[1:] == one.shape for one, values in zip(spec.named.values(), leaves(batch.inputs), strict=True)
        )
    except ValueError:
        return False


def _check_range(spec: InputSpec, values: Tensor, info: PluginInfo) -> None:
    if spec.bounds is None or not values.numel():
        return
    view = (1, -1) + (1,) * (values.ndim - 2)
    low, high = (values.new_tensor(edge, dtype=torch.float32).view(view) for edge in spec.bounds)
    slack = _SLACK * (high - low)
    outside = ((values < low - slack) | (values > high + slack)).float().mean()
    if outside > 0:
        lowest, highest = spec.input_range or (0.0, 0.0)
        raise DataError(
            f"The {info} yielded values from {float(values.min()):.4g} to {float(values.max()):.4g}, but the network's "
            f"inputs lie between {lowest:.4g} and {highest:.4g} ({float(outside):.1%} are outside). Clamp them to "
            "spec.bounds, or set keeps_range to False in the generator."
        )
