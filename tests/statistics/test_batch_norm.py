"""BatchNorm statistics: which layers are observed, and that what is observed equals NumPy in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from dfq_plugins.errors import ModelError
from dfq_plugins.statistics.batch_norm import (
    INPUT_LAYER,
    StatisticsHooks,
    layer_divergences,
    pooled_moments,
    reached_layers,
    require_reached_layers,
    statistics_layers,
    stored_statistics,
    stores_statistics,
)
from dfq_plugins.statistics.moments import Moments, batch_moments
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS = [
    # how to make one for 3 channels, its eps, and its input
    (lambda: nn.BatchNorm1d(3, eps=0.5), 0.5, (16, 3)),
    (lambda: nn.BatchNorm1d(3, eps=0.1), 0.1, (16, 3, 9)),
    (lambda: nn.BatchNorm2d(3, eps=0.02), 0.02, (16, 3, 5, 4)),
    (lambda: nn.BatchNorm3d(3, eps=1e-3), 1e-3, (16, 3, 2, 3, 4)),
    (lambda: nn.SyncBatchNorm(3, eps=0.25), 0.25, (16, 3, 5, 4)),
    (lambda: FrozenBatchNorm2d(3, eps=0.3), 0.3, (16, 3, 5, 4)),
    (lambda: nn.BatchNorm2d(3, eps=0.03, affine=False), 0.03, (16, 3, 5, 4)),
    (lambda: nn.BatchNorm2d(3, eps=0.04, momentum=None), 0.04, (16, 3, 5, 4)),
]


def random(shape: tuple[int, ...], seed: int = 0, *, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std + mean


def fill(layer: nn.Module, seed: int = 7) -> nn.Module:
    """Give a layer statistics of some training."""
    layer.running_mean.copy_(random((len(layer.running_mean),), seed))  # type: ignore[union-attr,operator,arg-type]
    layer.running_var.copy_(random((len(layer.running_var),), seed + 1).abs() + 0.5)  # type: ignore[union-attr,operator,arg-type]
    return layer


def numpy_moments(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    array = values.double().numpy()
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    return array.mean(axes), array.var(axes)


def reference_kl(stored: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], eps: float) -> float:
    """Mean over channels of E_p[log p - log q] by Gauss-Hermite quadrature: exact for Gaussians, and no closed form."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    total = []
    for mu, variance, m, v in zip(*stored, *found, strict=True):
        p, q = stats.norm(mu, np.sqrt(variance + eps)), stats.norm(m, np.sqrt(v + eps))
        points = p.mean() + p.std() * nodes
        total.append(np.sum(weights * (p.logpdf(points) - q.logpdf(points))) / np.sqrt(2 * np.pi))
    return float(np.mean(total))


@pytest.mark.parametrize(("make", "eps", "shape"), LAYERS)
def test_every_kind_of_layer_is_observed_with_its_own_eps(
    make: Callable[[], nn.Module], eps: float, shape: tuple[int, ...]
) -> None:
    network = nn.Sequential(fill(make())).eval()
    inputs = random(shape, mean=1, std=2)
    with torch.no_grad(), StatisticsHooks(network) as hooks:
        network(inputs)
        moments = hooks.collect()
    mean, var = numpy_moments(inputs)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-5)
    stored = stored_statistics(network)
    layer = network[0]
    assert stored.names == ("0",)
    np.testing.assert_allclose(stored.eps, eps, rtol=1e-6)
    known = (layer.running_mean.double().numpy(), layer.running_var.double().numpy())
    expected = reference_kl(known, (mean, var), eps)
    assert layer_divergences(network, [inputs])["0"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.InstanceNorm1d(3, track_running_stats=True, affine=True),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.GroupNorm(1, 3),
        nn.LayerNorm(3),
        nn.Conv2d(3, 3, 1),
    ],
)
def test_layers_without_statistics_of_a_batch_are_not_observed(layer: nn.Module) -> None:
    assert not stores_statistics(layer)
    assert statistics_layers(nn.Sequential(layer)) == {}


class Nested(nn.Module):
    """Layers at three depths, one of them shared by two calls, another under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
        self.shared = nn.BatchNorm2d(4)
        self.alias = self.shared
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.shared(self.block(inputs))
        return self.alias(self.conv(hidden) * 3 + 2)


@pytest.fixture
def nested() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Nested().eval()
    for layer in statistics_layers(network).values():
        fill(layer)
    return network


def recorded(network: nn.Module, inputs: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Inputs of every BatchNorm, call by call, as plain hooks see them."""
    calls: dict[str, list[torch.Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: calls.setdefault(name, []).append(args[0]))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return calls


def test_nested_and_shared_modules_appear_once_and_average_over_their_calls(nested: nn.Module) -> None:
    inputs = random((8, 3, 4, 4))
    assert list(statistics_layers(nested)) == ["block.1.0", "shared"]
    with torch.no_grad(), StatisticsHooks(nested) as hooks:
        nested(inputs)
        moments = hooks.collect()
    calls = {name: [numpy_moments(call) for call in made] for name, made in recorded(nested, inputs).items()}
    assert [len(made) for made in calls.values()] == [1, 2]
    for index, found in enumerate((moments.mean, moments.var)):
        expected = np.concatenate([np.mean([call[index] for call in made], axis=0) for made in calls.values()])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """One layer that normalizes two branches of different distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(inputs) + self.norm(0.5 * inputs + 4)


def test_the_data_of_training_is_near_also_where_a_layer_is_shared() -> None:
    """Torch itself trains the statistics; whatever it averages must be what is compared."""
    network, inputs = Branches(), random((256, 3, 4, 4), std=2)
    with torch.no_grad():
        for _ in range(100):
            network(inputs)
    assert layer_divergences(network.eval(), [inputs])["norm"] < 0.01
    assert layer_divergences(network, [inputs * 2])["norm"] > 0.2


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64, 100])
def test_pooled_moments_do_not_depend_on_the_batch_size(nested: nn.Module, batch_size: int) -> None:
    inputs = random((100, 3, 4, 4), mean=0.3) * torch.linspace(0.2, 3, 100).view(-1, 1, 1, 1)
    spec = InputSpec((3, 4, 4), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0))
    pooled = pooled_moments(nested, torch.split(inputs, batch_size), spec)
    calls = {INPUT_LAYER: [inputs], **recorded(nested, inputs)}
    for index, found in enumerate((pooled.mean, pooled.var)):
        parts = [np.mean([numpy_moments(call)[index] for call in made], axis=0) for made in calls.values()]
        np.testing.assert_allclose(found, np.concatenate(parts), rtol=2e-4, atol=1e-4)
    assert pooled.count == 100


def test_moments_stay_exact_far_from_zero() -> None:
    values = random((64, 2, 8, 8), mean=1000, std=0.5)
    mean, var = batch_moments(values, torch.full((2,), 1000.0))
    expected = numpy_moments(values)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-6)
    np.testing.assert_allclose(var, expected[1], rtol=1e-4)


def test_moments_of_half_precision_are_accumulated_in_float32() -> None:
    values = random((512, 1, 32), mean=1.0).bfloat16()
    mean, var = batch_moments(values, torch.zeros(1))
    assert (mean.dtype, var.dtype) == (torch.float32, torch.float32)
    np.testing.assert_allclose([mean.item(), var.item()], np.ravel(numpy_moments(values.float())), rtol=1e-4)


def test_pooling_equals_the_moments_of_the_union() -> None:
    first, second = random((30, 4)), random((70, 4), seed=1, mean=5, std=3)
    parts = [Moments(*batch_moments(part, torch.zeros(4)), count=len(part)) for part in (first, second)]
    pooled = parts[0].pooled(parts[1])
    expected = numpy_moments(torch.cat([first, second]))
    np.testing.assert_allclose(pooled.mean, expected[0], rtol=1e-5)
    np.testing.assert_allclose(pooled.var, expected[1], rtol=1e-5)


def test_the_input_is_a_layer_of_its_own_only_where_it_is_standardized() -> None:
    network = nn.Sequential(fill(nn.BatchNorm2d(3))).eval()
    inputs = random((32, 3, 4, 4), mean=2, std=3)
    standardized = InputSpec((3, 4, 4), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0))
    scaled = InputSpec((3, 4, 4), (127.5,) * 3, (127.5,) * 3, (0.0, 255.0))
    assert list(layer_divergences(network, [inputs], standardized)) == [INPUT_LAYER, "0"]
    assert list(layer_divergences(network, [inputs], scaled)) == ["0"]
    found = layer_divergences(network, [inputs], standardized)[INPUT_LAYER]
    unit = (np.zeros(3), np.ones(3))
    assert found == pytest.approx(reference_kl(unit, numpy_moments(inputs), 1e-5), rel=1e-4)


def test_weights_average_channels_first_and_then_layers() -> None:
    network = nn.Sequential(fill(nn.BatchNorm1d(2)), nn.Linear(2, 6), fill(nn.BatchNorm1d(6))).eval()
    stored = stored_statistics(network)
    assert stored.sizes == (2, 6)
    np.testing.assert_allclose(stored.weight, [1 / 4] * 2 + [1 / 12] * 6, rtol=1e-6)
    assert stored.per_layer(torch.arange(8.0)) == {"0": 0.5, "2": 4.5}


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


def test_hooks_are_removed_also_after_exceptions(nested: nn.Module) -> None:
    with StatisticsHooks(nested, modules_only=True):
        assert hooks(nested) == 2
    with StatisticsHooks(nested):
        assert hooks(nested) == 2 + 2  # and those that watch for functional calls
    assert hooks(nested) == 0
    with pytest.raises(KeyError), StatisticsHooks(nested):
        raise KeyError
    assert hooks(nested) == 0
    with pytest.raises(RuntimeError, match="channels"):
        layer_divergences(nested, [torch.zeros(1, 2, 4, 4)])
    with pytest.raises(RuntimeError, match="channels"):
        pooled_moments(nested, [torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4)])
    assert hooks(nested) == 0


class Auxiliary(nn.Module):
    """An auxiliary head that rests in eval mode, as in torchvision's GoogLeNet."""

    def __init__(self, *, main: bool = True) -> None:
        super().__init__()
        self.norm = fill(nn.BatchNorm2d(3)) if main else nn.Identity()
        self.head = fill(nn.BatchNorm2d(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(inputs)
        return self.head(hidden) if self.training else hidden


def test_layers_that_rest_are_left_out() -> None:
    network = Auxiliary().eval()
    inputs = random((4, 3, 2, 2))
    assert reached_layers(network, inputs) == ("norm",)
    assert list(layer_divergences(network, [inputs])) == ["norm"]
    assert require_reached_layers(network, InputSpec((3, 2, 2))) == ("norm",)
    with torch.no_grad(), StatisticsHooks(network) as hooks:
        network(inputs)
        with pytest.raises(RuntimeError, match=r"The forward pass did not reach the layers \['head'\]"):
            hooks.collect()


def test_a_network_that_calls_no_batch_norm_is_refused() -> None:
    network = Auxiliary(main=False).eval()
    assert layer_divergences(network, [random((4, 3, 2, 2))]) == {}
    with pytest.raises(ModelError, match="Auxiliary has BatchNorm layers, but a forward pass calls none of them"):
        require_reached_layers(network, InputSpec((3, 2, 2)))


def test_keyword_calls_are_observed() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = fill(nn.BatchNorm1d(3))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.norm(input=inputs)

    assert list(layer_divergences(Keyword().eval(), [random((4, 3))])) == ["norm"]


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3)]])
def test_no_samples_have_no_statistics(batches: list[torch.Tensor]) -> None:
    network = nn.Sequential(fill(nn.BatchNorm1d(3))).eval()
    for function in (layer_divergences, pooled_moments):
        with pytest.raises(ValueError, match="Statistics need at least one sample, got none"):
            function(network, batches)
