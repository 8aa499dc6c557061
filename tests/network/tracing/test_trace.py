"""Networks written in the ways that people write them become graphs that compute the same, for any batch size."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dfq_plugins.errors import ModelError
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import GraphModule

SPEC = InputSpec((3, 12, 12))


class Written(nn.Module):
    """Layers to write a forward pass with; the forward pass is a parameter."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.linear, self.relu = nn.BatchNorm2d(8), nn.Linear(8, 4), nn.ReLU(inplace=True)
        self.weight, self.position = nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.randn(1, 1, 8))
        for name, module in modules.items():
            self.add_module(name, module)
        self.written = forward
        self.eval()

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **__: Any) -> Any:
        assert mask is None
        assert inputs.shape[1] == 3
        return self.written(self, inputs)


class SameConv(nn.Conv2d):
    """Pads by the size of its input, as ports from TensorFlow do."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        size, stride, kernel = inputs.shape[-1], self.stride[0], self.kernel_size[0]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        around = [total // 2, total - total // 2] * 2
        return functional.conv2d(functional.pad(inputs, around), self.weight, self.bias, self.stride)


class StandardizedConv(nn.Conv2d):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(inputs, (self.weight - mean) / std, self.bias, padding=1)


class NormAndAct(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mean, variance = self.running_mean, self.running_var
        return self.act(functional.batch_norm(inputs, mean, variance, self.weight, self.bias, training=self.training))


class Cached(nn.Module):
    """Keeps a table for the sizes that it has seen, as attention with relative positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, torch.Tensor] = {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        size = inputs.shape[-1]
        if size not in self.tables:
            self.tables[size] = torch.arange(size, dtype=torch.float32) / size
        return inputs + self.tables[size]


class Projected(nn.Module):
    """Adds a table that a layer computes from nothing but the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(1, 8, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        table = (~torch.zeros(len(inputs), 1, 12, 12).bool()).cumsum(2, dtype=torch.float32)
        return inputs + self.projection((table / 12).to(inputs.dtype))


def write_even_channels(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    y[:, ::2] = 2 * y[:, 1::2]
    return y


def decode_in_place(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    y[..., 0:2] = y[..., 0:2].sigmoid() * 2
    y[:, 0] = 0.0
    y[:, -1, 1:3] = y[:, 2, 1:3]
    return y


def change_a_view(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    flat = y.view(len(y), -1)
    flat[:, :5].mul_(2)
    return y + flat.view(y.shape)


def change_one_of_two_views(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    first, second = y[:, :2], y[:, 1:7]
    first.add_(1)
    return torch.cat([first, second], 1) + y


def change_a_chunk(net: Any, x: torch.Tensor) -> torch.Tensor:
    first, second = net.conv(x).chunk(2, 1)
    first.add_(1)
    return torch.cat([first, second], 1)


def fill_new_tensor(net: Any, x: torch.Tensor) -> torch.Tensor:
    new = torch.zeros(x.shape[0], 8, 12, 12)
    new[:, 0:4] = net.conv(x)[:, :4]
    return new


def change_the_input(net: Any, x: torch.Tensor) -> torch.Tensor:
    x -= 0.5
    return net.conv(x)


FORWARDS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "mean over a tuple": lambda net, x: net.linear(net.relu(net.norm(net.conv(x))).mean((2, 3))),
    "mean over a list": lambda net, x: net.linear(net.conv(x).mean(dim=[2, 3])),
    "in place": lambda net, x: functional.relu_(net.conv(x).add_(1).mul_(2)),
    "chained sum": lambda net, x: sum([net.conv(x), net.second(net.conv(x)), 1]),
    "scaled addition": lambda net, x: torch.add(net.conv(x), net.second(net.conv(x)), alpha=0.5),
    "numbers first": lambda net, x: 1 - net.conv(x) + 2 / (net.conv(x).sigmoid() + 1),
    "functional convolution": lambda net, x: functional.conv2d(input=net.conv(x), weight=net.weight, padding=1),
    "product with a parameter": lambda net, x: net.conv(x).mean((2, 3)) @ net.weight[:, :, 0, 0],
    "axis": lambda net, x: torch.cat((net.conv(x), net.conv(x)), axis=1),
    "size in a view": lambda net, x: net.conv(x).view(x.size(0) * 2, -1).view(x.size(0), -1),
    "class token": lambda net, x: torch.cat(
        [net.position.expand(x.shape[0], -1, -1), net.conv(x).flatten(2).transpose(1, 2)], 1
    ),
    "unpacked": lambda net, x: functools.reduce(operator.add, list(net.conv(x).split(2, 1))),
    "sizes of another tensor": lambda net, x: functional.interpolate(net.conv(x), x.shape[-2:], mode="bilinear"),
    "pool of the whole": lambda net, x: functional.avg_pool2d(net.conv(x), x.size()[3]),
    "direct forward": lambda net, x: net.norm.forward(net.conv.forward(x)),
    "transposed property": lambda net, x: net.conv(x).mT @ net.conv(x).data,
    "numbers of the batch": lambda net, x: net.conv(x) + torch.arange(x.shape[0])[:, None, None, None],
    "new tensors": lambda net, x: (
        net.conv(x) * torch.full((x.shape[0], 1, 1, 1), 2.0) + torch.ones(x.shape[0], 1, 1, 1)
    ),
    "value of a parameter": lambda net, x: net.conv(x) * (2 if net.weight.sum() > 0 else 3),
    "mask": lambda net, x: net.conv(x).masked_fill_(net.conv(x) < 0, 0.5),
    "structure": lambda net, x: {"maps": net.conv(x), "rest": (net.linear(net.conv(x).mean((2, 3))), 3.0)},
    "strided write": write_even_channels,
    "decoding in place": decode_in_place,
    "change of a view": change_a_view,
    "change of one of two views": change_one_of_two_views,
    "change of a chunk": change_a_chunk,
    "new tensor": fill_new_tensor,
    "change of the input": change_the_input,
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "same padding": lambda: SameConv(8, 8, 3, stride=2),
    "standardized weights": lambda: StandardizedConv(8, 8, 3),
    "BatchNorm with activation": lambda: NormAndAct(8),
    "BatchNorm without running statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "BatchNorm without scale": lambda: nn.BatchNorm2d(8, affine=False),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)),
    "data parallel": lambda: nn.DataParallel(nn.Conv2d(8, 8, 3)),
    "cache": Cached,
    "table through a layer": Projected,
    "normalization of maps": lambda: nn.GroupNorm(2, 8),
}


def tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def require_same(network: nn.Module, graph: GraphModule) -> None:
    for samples in (1, 5):
        inputs = torch.randn(samples, *SPEC.shape, generator=torch.Generator().manual_seed(samples))
        expected, found = tensors(network(inputs.clone())), tensors(graph(inputs.clone()))
        assert len(found) == len(expected)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORWARDS)
@torch.no_grad()
def test_ways_to_write_a_forward_pass(name: str) -> None:
    network = Written(FORWARDS[name])
    require_same(network, trace(fitted_copy(network), SPEC))


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
def test_layers_that_frameworks_do_not_know(name: str) -> None:
    network = Written(lambda net, x: net.own(net.conv(x)), own=MODULES[name]())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    graph = trace(fitted_copy(network), SPEC)
    require_same(network, graph)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        (SameConv(8, 8, 3, stride=2), nn.Conv2d),
        (StandardizedConv(8, 8, 3), nn.Conv2d),
        (NormAndAct(8), nn.BatchNorm2d),
    ],
)
def test_a_layer_written_as_a_function_is_a_module_under_its_name(own: nn.Module, kind: type[nn.Module]) -> None:
    graph = trace(fitted_copy(Written(lambda net, x: net.own(net.conv(x)), own=own)), SPEC)
    assert type(graph.get_submodule("own")) is kind


def test_every_call_of_a_layer_has_a_module_of_its_own() -> None:
    graph = trace(Written(lambda net, x: net.second(net.second(net.conv(x)))), SPEC)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["conv", "second", "second_2"]


def test_hooks_that_change_outputs_are_taken_along() -> None:
    network = Written(lambda net, x: net.own(x), own=nn.Sequential(nn.Conv2d(3, 8, 3)))
    network.own.register_forward_hook(lambda _module, _inputs, output: output * 2)
    network.own[0].register_forward_hook(lambda _module, _inputs, output: output + 1)
    require_same(network, trace(fitted_copy(network), SPEC))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda net, x: net.conv(x) if x.sum() > 0 else x,
            r"values of its input, but bool\(\) reads a tensor",
        ),
        (
            lambda net, x: net.conv(x) * x.max().item(),
            r"item\(\) reads a tensor in the network's own forward",
        ),
        (lambda net, x: net.conv(torch.from_numpy(np.tanh(x.numpy()))), r"numpy\(\) reads a tensor"),
        (
            lambda net, x: torch.stack([item * 2 for item in net.conv(x)]),
            r"loop or branch over the batch makes it di",
        ),
    ],
)
def test_what_depends_on_values_is_refused_with_its_line(forward: Callable[..., Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        trace(Written(forward), SPEC)


def test_the_advice_is_the_frameworks() -> None:
    network = Written(lambda net, x: net.own(x), own=Written(lambda net, x: net.conv(x) if x.sum() > 0 else x))
    with pytest.raises(ModelError, match=r"in 'own' at .* Leave out own\."):
        trace(network, SPEC, way_round=lambda name: f"Leave out {name}.")


def test_a_submodule_can_be_kept_whole() -> None:
    network = Written(lambda net, x: net.own(x), own=Written(lambda net, x: net.conv(x) if x.sum() > 0 else x))
    graph = trace(network, SPEC, opaque=("own",))
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["own"]


def test_inputs_that_the_network_does_not_take() -> None:
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \(4, 12, 12\): AssertionError at .*assert"):
        trace(Written(lambda net, x: net.conv(x)), InputSpec((4, 12, 12)))
