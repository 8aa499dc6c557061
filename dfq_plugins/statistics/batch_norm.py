"""BatchNorm statistics: those that training stored in a network, and those that given inputs produce at each layer.

The statistics of all layers are concatenated into one flat vector, so that the divergence of a whole network takes a
handful of vector operations instead of a few per layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from dfq_plugins.errors import ModelError
from dfq_plugins.inputs import blank_inputs, cloned, count, leaves, moved, rows, run_network
from dfq_plugins.model_state import ForwardHooks, device_of
from dfq_plugins.statistics.divergences import DIVERGENCES, DivergenceName, gaussian_kl
from dfq_plugins.statistics.functional import FunctionalNorms
from dfq_plugins.statistics.moments import Moments, averaged_calls, batch_moments

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from torch.utils.hooks import RemovableHandle

    from dfq_plugins.types import Inputs, InputSpec, Specification

INPUT_LAYER = "input"
"""Name of the pseudo-layer at the network's input, where normalized data has mean 0 and variance 1.

A network with several inputs has one for each that is normalized: `input.image`.
"""

EPS = 1e-5
"""Added to the variances of the pseudo-layer, and of layers without an `eps` attribute."""


CONSTANT = 1e-3
"""A channel is constant if its variance is below this share of eps: normalized, it varies by at most 3 percent."""


def stores_statistics(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Return whether a module stores per-channel running statistics of its input.

    True for BatchNorm 1d, 2d and 3d, SyncBatchNorm, torchvision's FrozenBatchNorm2d and any other module with vectors
    `running_mean` and `running_var`; false for instance normalization, whose statistics are not those of a batch, and
    for TorchScript, which calls no hooks.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return False
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    vectors = isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.ndim == 1 and mean.shape == var.shape
    return vectors and not isinstance(module, _InstanceNorm)


def statistics_layers(model: nn.Module, names: Collection[str] | None = None) -> dict[str, nn.BatchNorm2d]:
    """Return the layers that store running statistics, by qualified name; a shared module appears once.

    Args:
        model: the network.
        names: keep only these layers; None keeps all.
    """
    layers = {name: module for name, module in model.named_modules() if stores_statistics(module)}
    return layers if names is None else {name: layer for name, layer in layers.items() if name in names}


@torch.no_grad()
def reached_layers(model: nn.Module, inputs: Inputs, spec: Specification | None = None) -> tuple[str, ...]:
    """Return the names of the statistics layers that a forward pass of `inputs` calls.

    Auxiliary classifiers, for example, are not called in eval mode. Layers that are not called cannot be observed and
    are excluded. So are layers with initial statistics, if others are trained: they say nothing about the data.
    """
    with StatisticsHooks(model) as hooks:
        run_network(model, cloned(inputs), spec)
        reached = hooks.reached
    trained = tuple(name for name in reached if not untrained(hooks.layers[name]))
    return trained or reached


def untrained(layer: nn.Module) -> bool:
    """Return whether a layer that stores statistics still has the initial ones, mean 0 and variance 1."""
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())  # type: ignore[union-attr]


def require_reached_layers(model: nn.Module, spec: Specification) -> tuple[str, ...]:
    """Return the names of the statistics layers that a forward pass calls; there must be at least one.

    Raises:
        ModelError: no such layer is called.
    """
    names = reached_layers(model, blank_inputs(spec, 1, device_of(model)), spec)
    if not names:
        raise ModelError(
            f"{type(model).__name__} has BatchNorm layers, but a forward pass calls none of them, so their inputs "
            "cannot be observed. Call the layers as modules, or pass the model that calls them."
        )
    return names


@torch.no_grad()
def functional_layers(model: nn.Module, spec: Specification, names: Collection[str]) -> set[str]:
    """Return the layers that normalize another tensor than their module's input; see `StatisticsHooks`."""
    with StatisticsHooks(model, names=names) as hooks:
        spec.run(model, blank_inputs(spec, 1, device_of(model)))
        return hooks.functional


@dataclass(frozen=True)
class StoredStatistics:
    """The running statistics of all layers of a network as flat vectors.

    Args:
        names: layer names, in the order of the vectors.
        sizes: number of channels of each layer.
        mean: stored means, shape `(sum(sizes),)`, float32.
        var: stored variances, without eps.
        eps: eps of each channel's layer.
        weight: weight of each channel in a mean over channels, then over layers; the weights sum to 1.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    mean: Tensor
    var: Tensor
    eps: Tensor
    weight: Tensor

    def divergence(self, mean: Tensor, var: Tensor, kind: DivergenceName = "kl") -> Tensor:
        """Return each channel's divergence from observed moments; 0 for channels that are constant in both.

        A dead filter is constant whatever the input, so its statistics say nothing about the data. Rounding its mean to
        bfloat16 would count for more than all other channels, in units of a standard deviation of almost 0.

        Args:
            mean: observed means, shape `(sum(sizes),)`.
            var: observed variances, without eps.
            kind: the divergence.
        """
        return self._varying(var, DIVERGENCES[kind](self.mean, self.var + self.eps, mean, var + self.eps))

    def surprise(self, mean: Tensor, var: Tensor) -> Tensor:
        """Return each channel's KL divergence of the observed from the stored moments; see `divergence`."""
        return self._varying(var, gaussian_kl(mean, var + self.eps, self.mean, self.var + self.eps))

    def _varying(self, var: Tensor, distance: Tensor) -> Tensor:
        return distance.where(torch.maximum(self.var, var) > CONSTANT * self.eps, 0.0)

    def per_layer(self, per_channel: Tensor) -> dict[str, float]:
        """Return the mean over the channels of each layer."""
        parts = torch.split(per_channel.detach(), list(self.sizes))
        return {name: float(part.mean()) for name, part in zip(self.names, parts, strict=True)}


def standardized_inputs(spec: Specification | None) -> dict[str, InputSpec]:
    """Return the inputs whose statistics are known, by the name of their pseudo-layer.

    >>> from dfq_plugins.types import InputSpec, NetworkSpec
    >>> image, meta = InputSpec((1, 8, 8), (0.0,), (1.0,)), InputSpec((4,))
    >>> list(standardized_inputs(image)), list(standardized_inputs(NetworkSpec({"image": image, "meta": meta})))
    (['input'], ['input.image'])
    """
    if spec is None:
        return {}
    several = len(spec.named) > 1
    return {
        f"{INPUT_LAYER}.{name}" if several else INPUT_LAYER: one for name, one in spec.named.items() if one.standardized
    }


def stored_statistics(
    model: nn.Module, spec: Specification | None = None, names: Collection[str] | None = None
) -> StoredStatistics:
    """Collect the running statistics of `model`; the input pseudo-layer comes first if the input is standardized.

    Args:
        model: a network with at least one BatchNorm layer.
        spec: adds the pseudo-layer (mean 0, variance 1 per input channel) if its inputs are standardized.
        names: the layers to collect; None collects all.
    """
    layers = statistics_layers(model, names)
    device = next(iter(layers.values())).running_mean.device  # type: ignore[union-attr]
    layer_rows = [
        (name, layer.running_mean, layer.running_var, float(getattr(layer, "eps", EPS)))
        for name, layer in layers.items()
    ]
    zeros = {name: torch.zeros(one.channels, device=device) for name, one in standardized_inputs(spec).items()}
    layer_rows = [*((name, zero, torch.ones_like(zero), EPS) for name, zero in zeros.items()), *layer_rows]
    sizes = tuple(len(mean) for _, mean, _, _ in layer_rows)  # type: ignore[arg-type]
    return StoredStatistics(
        names=tuple(row[0] for row in layer_rows),
        sizes=sizes,
        mean=torch.cat([row[1].detach().float() for row in layer_rows]),  # type: ignore[union-attr]
        var=torch.cat([row[2].detach().float() for row in layer_rows]),  # type: ignore[union-attr]
        eps=torch.cat(
            [torch.full((size,), row[3], device=device) for row, size in zip(layer_rows, sizes, strict=True)]
        ),
        weight=torch.cat([torch.full((size,), 1 / size / len(layer_rows), device=device) for size in sizes]),
    )


class StatisticsHooks(ForwardHooks):
    """Observes the inputs of all statistics layers of a network while the context is open.

    If one forward pass calls a layer several times (a shared module), its mean and variance are averaged over the
    calls. Training does the same: each call updates the running statistics separately. On small networks trained that
    way, training data diverges by 0.001 to 0.1 from the stored statistics, and by 0.03 to 0.2 if the calls are pooled.

    What counts is the tensor that is normalized. For most layers it is the module's input. Where a forward pass gives
    another tensor to `torch.nn.functional.batch_norm`, such as the output of a convolution inside the module, or where
    another module uses the layer's statistics, that tensor is observed.

    Args:
        model: the network; hooks are attached to it while the context is open.
        spec: adds the input pseudo-layer if the input is standardized.
        names: the layers to observe; None observes all.
        modules_only: do not look for functional calls, which the compiler cannot do.

    >>> network = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> with StatisticsHooks(network) as hooks:
    ...     _ = network(torch.tensor([[1.0], [3.0]]))
    ...     moments = hooks.collect()
    >>> moments.mean.tolist(), moments.var.tolist()
    ([2.0], [1.0])
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Specification | None = None,
        names: Collection[str] | None = None,
        *,
        modules_only: bool = False,
    ) -> None:
        self.model = model
        self.spec = spec
        self.layers = statistics_layers(model, names)
        self.functional: set[str] = set()
        """Names of the layers that normalize another tensor than the module's input."""
        self._watch = None if modules_only else FunctionalNorms(self._owners(), self._observe_function)
        self._calls: dict[str, list[Moments]] = {}
        self._entered: dict[str, tuple[Tensor, int]] = {}  # a call's input, and the number of observations before it

    def attach(self) -> Iterator[RemovableHandle]:
        """Register a forward pre-hook at each layer, and hooks at the network that watch for functional calls."""
        for name, layer in self.layers.items():
            yield layer.register_forward_pre_hook(self._observer(name), with_kwargs=True)
        if self._watch is not None:
            yield from self._watch.attach(self.model)

    def _owners(self) -> dict[int, str]:
        return {id(layer.running_mean): name for name, layer in self.layers.items()}

    def close(self) -> None:
        """Remove every hook and discard all observations."""
        super().close()
        self.forget()

    def _observer(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            del layer
            values = next((value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)), None)
            if values is not None:
                if self._watch is not None and self._watch.active:
                    self._entered[name] = (values, len(self._calls.get(name, ())))
                self._observe(name, values)

        return observe

    def _observe_function(self, name: str, values: Tensor) -> None:
        """Observe the tensor that a layer normalizes, instead of the module's input if that is another one."""
        entered, before = self._entered.pop(name, (None, None))
        if entered is not values:
            self.functional.add(name)
            self._calls[name] = self._calls.get(name, [])[:before]
            self._observe(name, values)

    def _observe(self, name: str, values: Tensor) -> None:
        shift = self.layers[name].running_mean
        assert shift is not None  # noqa: S101  by the choice of the layers
        if values.ndim > 1 and values.shape[1] == len(shift):
            self._calls.setdefault(name, []).append(Moments(*batch_moments(values, shift), count=len(values)))

    @property
    def reached(self) -> tuple[str, ...]:
        """Names of the layers that were called since the last collection."""
        return tuple(name for name in self.layers if self._calls.get(name))

    def forget(self) -> None:
        """Discard the observations of an incomplete forward pass."""
        self._calls.clear()
        self._entered.clear()

    def collect(self, inputs: Inputs | None = None) -> Moments:
        """Return the moments of all layers since the last collection, and discard them.

        Args:
            inputs: the network input, for the pseudo-layer; required if the specification is standardized.

        Raises:
            RuntimeError: a layer was not reached by the forward pass.
        """
        return averaged_calls(self.collect_calls(inputs))

    def collect_calls(self, inputs: Inputs | None = None) -> list[list[Moments]]:
        """Return the moments of every layer for each call, and discard them; see `collect`."""
        missing = self.layers.keys() - set(self.reached)
        if missing:
            raise RuntimeError(f"The forward pass did not reach the layers {sorted(missing)}.")
        calls = [self._calls[name] for name in self.layers]
        if self.spec is not None and inputs is not None:
            pairs = leaves(self.spec.map(lambda one, tensor: (one, tensor), inputs))
            known = [tensor for one, tensor in pairs if one.standardized]
            moments = [batch_moments(tensor, tensor.new_zeros(tensor.shape[1])) for tensor in known]
            calls = [[Moments(*found, count=count(inputs))] for found in moments] + calls
        self._calls, self._entered = {}, {}
        return calls


class StatisticsPool:
    """Pools moments over batches: the result is the statistics of the whole set, whatever the batch size.

    Args:
        model: a network with at least one BatchNorm layer, in eval mode.
        spec: adds the input pseudo-layer if the input is standardized.
        names: the layers to observe; None observes all.
    """

    def __init__(
        self, model: nn.Module, spec: Specification | None = None, names: Collection[str] | None = None
    ) -> None:
        self._model = model
        self._hooks = StatisticsHooks(model, spec, names)
        self._pooled: list[list[Moments]] = []

    @torch.no_grad()
    def add(self, batch: Inputs) -> None:
        """Run one batch `(batch, *shape)` through the network; an empty batch has no effect."""
        if count(batch):
            with self._hooks as hooks:
                run_network(self._model, cloned(batch), self._hooks.spec)
                new = hooks.collect_calls(batch)
            pairs = zip(self._pooled, new, strict=True)
            self._pooled = [_pool_calls(*pair) for pair in pairs] if self._pooled else new

    def moments(self) -> Moments:
        """Return the moments of all samples so far at every layer.

        Raises:
            ValueError: there were no samples.
        """
        if not self._pooled:
            raise ValueError("Statistics need at least one sample, got none.")
        return averaged_calls(self._pooled)


def pooled_moments(
    model: nn.Module,
    batches: Iterable[Inputs],
    spec: Specification | None = None,
    names: Collection[str] | None = None,
) -> Moments:
    """Run all batches through the network and return the moments of the whole set at every statistics layer.

    Raises:
        ValueError: there are no samples.
    """
    pool = StatisticsPool(model, spec, names)
    for batch in batches:
        pool.add(batch)
    return pool.moments()


def _pool_calls(known: list[Moments], new: list[Moments]) -> list[Moments]:
    return [former.pooled(latter) for former, latter in zip(known, new, strict=True)]


def layer_divergences(
    model: nn.Module, batches: Iterable[Inputs], spec: Specification | None = None
) -> Mapping[str, float]:
    """Return each layer's KL divergence between the stored statistics and those of all batches together.

    Its mean over layers is the measure of data similarity of Haroush et al. 2020: how far a data set is from the
    training data, as a trained network sees it. Layers that a forward pass does not call are excluded; the result is
    empty if it calls none.

    Args:
        model: a network with at least one BatchNorm layer, in eval mode.
        batches: inputs `(batch, *shape)`, moved to the network's device one by one.
        spec: adds the input pseudo-layer if the input is standardized.

    Raises:
        ValueError: there are no samples.
    """
    given = (moved(batch, device_of(model)) for batch in batches if count(batch))
    first = next(given, None)
    if first is None:
        raise ValueError("Statistics need at least one sample, got none.")
    names = reached_layers(model, rows(first, slice(1)), spec)
    if not names:
        return {}
    observed = pooled_moments(model, chain([first], given), spec, names)
    return divergence_of(stored_statistics(model, spec, names), observed)


def divergence_of(stored: StoredStatistics, moments: Moments) -> dict[str, float]:
    """Return each layer's KL divergence of the stored from the observed statistics, in nats, averaged over channels."""
    return stored.per_layer(stored.divergence(moments.mean, moments.var))
