"""BatchNorm statistics: what training stored in a network, and what given inputs produce at the same places.

The statistics of all layers lie in one flat vector, layer after layer, so that a divergence over a whole network is a
handful of vector operations instead of a few per layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from dfq_plugins.divergences import gaussian_kl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

    from dfq_plugins.types import InputSpec

INPUT_LAYER = "input"
"""Name of the pseudo-layer at the network's input: normalised data has mean 0 and variance 1 there."""


def stores_statistics(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Tell whether a module holds per-channel running statistics of its input.

    True for BatchNorm 1d, 2d and 3d, SyncBatchNorm, torchvision's FrozenBatchNorm2d and everything else with vectors
    `running_mean` and `running_var`; false for instance normalisation, whose statistics are not those of a batch.
    """
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    vectors = isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.ndim == 1 and mean.shape == var.shape
    return vectors and not isinstance(module, _InstanceNorm)


def statistics_layers(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return the layers that hold running statistics, by qualified name; a shared module appears once."""
    return {name: module for name, module in model.named_modules() if stores_statistics(module)}


def batch_moments(values: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in float32, of a tensor `(batch, channels, *spatial)`.

    Computed from `values - shift` in one pass; a shift near the mean keeps the subtraction of squares exact.

    >>> mean, var = batch_moments(torch.tensor([[1.0], [3.0]]), torch.tensor([2.5]))
    >>> mean.item(), var.item()
    (2.0, 1.0)
    """
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1] + [1] * (values.ndim - 2)
    centred = values.float() - shift.float().view(shape)
    offset = centred.mean(axes)
    return shift.float() + offset, (centred.square().mean(axes) - offset.square()).clamp_min(0)


@dataclass(frozen=True)
class Moments:
    """Mean and variance per channel, all layers in one vector; `count` samples were pooled."""

    mean: Tensor
    var: Tensor
    count: int = 1

    def pooled(self, other: Moments) -> Moments:
        """Return the exact moments of both sets together (Chan et al. 1979, pairwise update)."""
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        var = self.var + (other.var - self.var) * share + delta.square() * share * (1 - share)
        return Moments(mean, var, count)


@dataclass(frozen=True)
class StoredStatistics:
    """The running statistics of all layers of a network as flat vectors.

    Args:
        names: layer names, in the order of the vectors.
        sizes: channels of each layer.
        mean: stored means, shape `(sum(sizes),)`, float32.
        var: stored variances, without eps.
        eps: eps of each channel's layer.
        weight: weight of each channel in a mean over channels, then over layers; sums to 1.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    mean: Tensor
    var: Tensor
    eps: Tensor
    weight: Tensor

    def per_layer(self, per_channel: Tensor) -> dict[str, float]:
        """Return the mean over the channels of each layer."""
        parts = per_channel.detach().split(list(self.sizes))
        return {name: float(part.mean()) for name, part in zip(self.names, parts, strict=True)}


def stored_statistics(model: nn.Module, spec: InputSpec | None = None) -> StoredStatistics:
    """Collect the running statistics of `model`, the input pseudo-layer first where the input is standardized.

    Args:
        model: a network with at least one BatchNorm layer.
        spec: adds the pseudo-layer (mean 0, variance 1 per input channel) if its inputs are standardized.
    """
    layers = statistics_layers(model)
    device = next(iter(layers.values())).running_mean.device  # type: ignore[union-attr]
    rows = [(name, layer.running_mean, layer.running_var, float(layer.eps)) for name, layer in layers.items()]
    if spec is not None and spec.standardized:
        zeros = torch.zeros(spec.channels, device=device)
        rows.insert(0, (INPUT_LAYER, zeros, torch.ones_like(zeros), 1e-5))
    sizes = tuple(len(mean) for _, mean, _, _ in rows)  # type: ignore[arg-type]
    return StoredStatistics(
        names=tuple(row[0] for row in rows),
        sizes=sizes,
        mean=torch.cat([row[1].detach().float() for row in rows]),  # type: ignore[union-attr]
        var=torch.cat([row[2].detach().float() for row in rows]),  # type: ignore[union-attr]
        eps=torch.cat([torch.full((size,), row[3], device=device) for row, size in zip(rows, sizes, strict=True)]),
        weight=torch.cat([torch.full((size,), 1 / size / len(rows), device=device) for size in sizes]),
    )


class StatisticsTaps:
    """Observes the inputs of all statistics layers of a network while the context is open.

    A layer that one forward pass calls several times (a shared module) contributes the moments pooled over its calls,
    which is what its running statistics averaged in training.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    >>> with StatisticsTaps(network) as taps:
    ...     _ = network(torch.zeros(4, 1, 3, 3))
    ...     moments = taps.collect()
    >>> moments.mean.shape, moments.var.tolist()
    (torch.Size([2]), [0.0, 0.0])
    """

    def __init__(self, model: nn.Module, spec: InputSpec | None = None) -> None:
        self.model = model
        self.spec = spec
        self.layers = statistics_layers(model)
        self._calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Attach a forward pre-hook to each layer."""
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._observer(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()

    def _observer(self, name: str):  # noqa: ANN202  torch's own hook type
        def observe(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            moments = batch_moments(arguments[0], layer.running_mean)  # type: ignore[arg-type]
            self._calls.setdefault(name, []).append(moments)

        return observe

    def collect(self, inputs: Tensor | None = None) -> Moments:
        """Return the moments of all layers since the last call, and forget them.

        Args:
            inputs: the network input, for the pseudo-layer; needed where the specification is standardized.

        Raises:
            RuntimeError: a layer was not reached by the forward pass.
        """
        missing = self.layers.keys() - self._calls.keys()
        if missing:
            raise RuntimeError(f"The forward pass did not reach the layers {sorted(missing)}.")
        parts = [_pool_calls(self._calls[name]) for name in self.layers]
        if self.spec is not None and self.spec.standardized and inputs is not None:
            parts.insert(0, batch_moments(inputs, inputs.new_zeros(inputs.shape[1])))
        self._calls.clear()
        mean, var = (torch.cat(column) for column in zip(*parts, strict=True))
        return Moments(mean, var, 1 if inputs is None else len(inputs))


def _pool_calls(calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    pooled = Moments(*calls[0])
    for call in calls[1:]:
        pooled = pooled.pooled(Moments(*call))
    return pooled.mean, pooled.var


def pooled_moments(model: nn.Module, batches: Iterable[Tensor], spec: InputSpec | None = None) -> Moments:
    """Run all batches through the network and return the moments of the whole set at every statistics layer.

    The statistics are those of the set, not an average over batches, so they do not depend on the batch size.
    """
    pooled: Moments | None = None
    with torch.no_grad(), StatisticsTaps(model, spec) as taps:
        for batch in batches:
            model(batch)
            moments = taps.collect(batch)
            pooled = moments if pooled is None else pooled.pooled(moments)
    if pooled is None:
        raise ValueError("Statistics need at least one batch, got none.")
    return pooled


def layer_divergences(
    model: nn.Module, batches: Iterable[Tensor], spec: InputSpec | None = None
) -> Mapping[str, float]:
    """Return the KL divergence of each layer between the stored statistics and those of all batches together.

    Its mean over layers is the measure of data similarity of Haroush et al. 2020: how far a data set is, in the eyes
    of a trained network, from the data of its training.
    """
    stored = stored_statistics(model, spec)
    moments = pooled_moments(model, batches, spec)
    per_channel = gaussian_kl(stored.mean, stored.var + stored.eps, moments.mean, moments.var + stored.eps)
    return stored.per_layer(per_channel)
