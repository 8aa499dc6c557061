"""Networks that people bring: each is synthesized from, its statistics are matched, and the caller's tensors stay."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dfq_plugins.data.calibration_data import as_calibration_data
from dfq_plugins.distillation.loss import DistillationLoss
from dfq_plugins.errors import ModelError
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.network.agreement import class_agreement, output_agreement
from dfq_plugins.network.memory import forward
from dfq_plugins.quality.run import inspect
from dfq_plugins.recording.units import UnitReader
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.options import InversionOptions
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.types import InputSpec
from tiny_networks import TinyNetwork

if TYPE_CHECKING:
    from dfq_plugins.data.dataset import SyntheticDataset

SPEC = InputSpec((3, 8, 8), value_range=(-3.0, 3.0), num_classes=4)
QUICK = {"iterations": 60, "compile": "never", "precision": "float32"}
BATCH = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(3).mul(0.5).clamp(-3, 3)


class Flattening(TinyNetwork):
    """LeNet and VGG: `view` needs a contiguous tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 64, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm2(self.conv(self.norm1(self.stem(inputs)).relu()))
        return self.linear(hidden.view(hidden.size(0), -1))


class FlatInput(nn.Module):
    """A perceptron on images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(inputs.view(len(inputs), -1))).relu())


class WindowView(TinyNetwork):
    """Merges the axes of space in the middle of a network."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm1(self.stem(inputs))
        return super().forward(inputs) + hidden.view(hidden.size(0), -1).mean(1, keepdim=True)


class Activated(nn.BatchNorm2d):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(super().forward(inputs), 0.3)


class Conditional(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.scale = nn.Linear(2, channels)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scale = 1 + self.scale(torch.ones(1, 2, dtype=inputs.dtype))
        return super().forward(inputs) * scale.view(1, -1, 1, 1)


class WithConvolution(nn.BatchNorm2d):
    """Normalizes another tensor than its input, of the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(3 * self.convolution(inputs) + 1)


class Functional(TinyNetwork):
    """Uses the statistics of a module that it does not call."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        norm, hidden = self.norm1, self.stem(inputs)
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        hidden = functional.batch_norm(hidden, *statistics, training=self.training).relu()
        return self.linear(self.norm2(self.conv(hidden)).relu().mean((2, 3)))


class OwnStatistics(nn.Module):
    """Stores the statistics itself, under the usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.batch_norm(
            self.stem(inputs), None, None, self.running_mean, self.running_var, self.training, 0.1, 1e-5, False
        )
        return self.linear(hidden.relu().mean((2, 3)))


class Overwriting(TinyNetwork):
    """Normalizes its input in place."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs -= 0.5
        inputs[:, 1:].mul_(2)
        return super().forward(inputs)


class Particular(TinyNetwork):
    """Reads what only torch's own layers have."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.norm1, nn.BatchNorm2d) or self.norm1.momentum is None:
            raise TypeError("not a BatchNorm")
        return super().forward(inputs)


class FixedType(TinyNetwork):
    """Requires float32 throughout."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(len(inputs), 8).index_add(0, torch.arange(len(inputs)), self.stem(inputs).mean((2, 3)))
        return super().forward(inputs) + hidden.sum()


class Optional(TinyNetwork):
    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None, *more: Any, **flags: Any) -> torch.Tensor:
        if more or flags:
            raise TypeError("unknown arguments")
        return super().forward(inputs if mask is None else inputs * mask)


class SharedHeads(TinyNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.norm2 = self.norm1


class Recomputing(TinyNetwork):
    """Stores no activations for the backward pass, as DenseNet can."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        def block(hidden: torch.Tensor) -> torch.Tensor:
            return self.norm2(self.conv(self.norm1(self.stem(hidden)).relu())).relu()

        return self.linear(checkpoint(block, inputs, use_reentrant=False).mean((2, 3)))


class Recurrent(nn.Module):
    """A sequence of vectors, normalized over both axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.recurrent = nn.Linear(24, 8), nn.BatchNorm1d(8), nn.LSTM(8, 8, batch_first=True)
        self.last = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs.permute(0, 2, 1, 3).flatten(2))  # (batch, rows, features)
        normalized = self.norm(hidden.transpose(1, 2)).transpose(1, 2).relu()
        return self.last(self.recurrent(normalized)[0][:, -1])


class HandWritten(nn.Module):
    """A BatchNorm in plain arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.running_mean.lerp_(inputs.mean((0, 2, 3)), 0.1)
            self.running_var.lerp_(inputs.var((0, 2, 3)), 0.1)
        return (inputs - self.running_mean.view(1, -1, 1, 1)) * (self.running_var + 1e-5).rsqrt().view(1, -1, 1, 1)


class DropPath(TinyNetwork):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(len(inputs), 1, 1, 1) > 0.5 if self.training else 1
        return super().forward(inputs * kept)


def with_norms(*norms: nn.Module) -> nn.Module:
    network = TinyNetwork()
    for name, norm in zip(("norm1", "norm2"), norms, strict=False):
        setattr(network, name, norm)
    return network


def hooked() -> nn.Module:
    network = TinyNetwork()
    network.norm1.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return network


def weight_norm() -> nn.Module:
    network = TinyNetwork()
    nn.utils.parametrizations.weight_norm(network.conv)
    return network


NETWORKS = {
    "view": Flattening,
    "view of the input": FlatInput,
    "view in the middle": WindowView,
    "activation in BatchNorm": lambda: with_norms(Activated(8), Activated(8)),
    "conditional BatchNorm": lambda: with_norms(Conditional(8)),
    "convolution in BatchNorm": lambda: with_norms(WithConvolution(8)),
    "functional": Functional,
    "own statistics": OwnStatistics,
    "in-place input": Overwriting,
    "particular about its layers": Particular,
    "particular about its type": FixedType,
    "optional arguments": Optional,
    "shared BatchNorm": SharedHeads,
    "DropPath": DropPath,
    "hook on BatchNorm": hooked,
    "recomputed activations": Recomputing,
    "recurrent": Recurrent,
    "hand-written BatchNorm": lambda: with_norms(HandWritten()),
    "no running statistics": lambda: with_norms(nn.BatchNorm2d(8, track_running_stats=False)),
    "cumulative average": lambda: with_norms(nn.BatchNorm2d(8, momentum=None)),
    "no affine": lambda: with_norms(nn.BatchNorm2d(8, affine=False)),
    "lazy": lambda: with_norms(nn.LazyBatchNorm2d()),
    "synchronized": TinyNetwork,  # converted after training, which needs a GPU
    "channels-last weights": lambda: TinyNetwork().to(memory_format=torch.channels_last),
    "weight norm": weight_norm,
    "compiled": lambda: torch.compile(TinyNetwork(), backend="eager"),
}


def trained(network: nn.Module) -> nn.Module:
    network.train()
    with torch.no_grad():
        for _ in range(60):
            network(BATCH.clone())
    return network.eval()


def build(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = trained(NETWORKS[name]())
        return nn.SyncBatchNorm.convert_sync_batchnorm(network) if name == "synchronized" else network


def mean_divergence(data: SyntheticDataset) -> float:
    divergences = data.manifest.divergence.values()
    return sum(divergences) / len(divergences)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_statistics_are_matched(name: str) -> None:
    network = build(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    data = synthesize(network, SPEC, num_samples=32, options=QUICK)
    noise = synthesize(network, SPEC, num_samples=32, generator="gaussian")
    assert mean_divergence(data) < 0.2
    assert mean_divergence(data) < 0.5 * mean_divergence(noise)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize(
    "name", ["view", "particular about its layers", "activation in BatchNorm", "hook on BatchNorm"]
)
def test_the_working_copy_computes_what_the_network_computes(name: str) -> None:
    network = frozen_copy(build(name))
    objective = InversionObjective(network, SPEC, InversionOptions(precision="float32"))
    torch.testing.assert_close(objective.model(BATCH.clone()), network(BATCH.clone()))


def test_a_network_that_is_particular_about_its_type_stays_in_float32() -> None:
    assert not InversionObjective(build("particular about its type"), SPEC, InversionOptions(precision="bfloat16")).half
    assert InversionObjective(build("optional arguments"), SPEC, InversionOptions(precision="bfloat16")).half


def test_a_network_without_view_stays_in_channels_last() -> None:
    options = InversionOptions(precision="float32")
    assert InversionObjective(build("optional arguments"), SPEC, options).layout is torch.channels_last
    assert InversionObjective(build("view"), SPEC, options).layout is torch.contiguous_format


def test_layers_that_were_never_trained_are_left_out() -> None:
    network = build("optional arguments")
    network.norm2.reset_running_stats()
    assert list(synthesize(network, SPEC, num_samples=32, options=QUICK).manifest.divergence) == ["norm1"]


def test_a_dead_filter_does_not_count() -> None:
    network = TinyNetwork()
    network.stem.bias = nn.Parameter(torch.full((8,), 5.3))
    with torch.no_grad():
        network.stem.weight[0] = 1e-12
    network = trained(network)
    network.norm1.running_mean[0] += 0.02  # as much as bfloat16 rounds off
    network.norm1.running_var[0] = 1e-12
    data = synthesize(network, SPEC, num_samples=32, options=QUICK)
    assert mean_divergence(data) < 0.1


# ------------------------------------------------------------------------------------------------ gradients


class NoGradient(TinyNetwork):
    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(1 * inputs)  # here


class Inference(TinyNetwork):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return super().forward(inputs / 2)  # here


class Detached(TinyNetwork):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mask = inputs > 0
        inputs = inputs * mask + torch.zeros_like(inputs)
        return super().forward(inputs.detach())  # here


class Bytes(TinyNetwork):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pixels = (inputs * 40 + 120).to(torch.uint8)  # here
        return super().forward(pixels.float())


class Rounded(TinyNetwork):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward((inputs * 8).round() / 8)  # here


class Partly(TinyNetwork):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm1(self.stem(inputs)).relu()
        return self.linear(self.norm2(self.conv(hidden.detach())).mean((2, 3)))  # here


@pytest.mark.parametrize("kind", [NoGradient, Inference, Detached, Bytes, Rounded])
@pytest.mark.parametrize("generator", ["bns", "inception", "gdfq"])
def test_a_lost_gradient_is_refused_with_its_line(kind: type[nn.Module], generator: str, tmp_path: Any) -> None:
    line = r"(ends at|is zero behind) .*test_networks.py:\d+: `.*# here`. Gradients do not"
    with pytest.raises(ModelError, match=rf"in {kind.__name__} the gradient {line}"):
        synthesize(trained(kind()), SPEC, generator=generator, num_samples=4, output=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_noise_needs_no_gradient() -> None:
    assert len(synthesize(trained(NoGradient()), SPEC, generator="gaussian", num_samples=4)) == 4


class InferenceOnly(TinyNetwork):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.requires_grad:
            raise RuntimeError("inference only")  # here
        return super().forward(inputs)


def test_a_network_that_fails_with_gradients_is_refused_with_its_line() -> None:
    message = (
        r"but InferenceOnly does not run with gradients: inference only at .*test_networks.py:\d+: `.*# here`. Change"
    )
    with pytest.raises(ModelError, match=message):
        synthesize(trained(InferenceOnly()), SPEC, num_samples=4)


def test_layers_that_no_gradient_reaches_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        synthesize(trained(Partly()), SPEC, num_samples=32, options=QUICK)
    (message, *_) = caplog.messages
    assert re.search(
        r"statistics of norm2 cannot be matched: the gradient ends at .*test_networks.py:\d+: `.*# here", message
    )


# ------------------------------------------------------------------------------------------------ inputs are kept


def test_an_overwriting_network_leaves_every_batch() -> None:
    network, batch = frozen_copy(build("in-place input")), BATCH.clone()
    expected = network(batch.clone())
    assert torch.equal(forward(network, batch)["output"], expected)
    assert class_agreement(output_agreement(network, network, [batch], 64, expected.shape[1])) == 1
    for part in as_calibration_data(batch, SPEC):
        network(part)
    inspect([batch], network, spec=SPEC)
    loss = DistillationLoss(network)
    assert torch.equal(loss.teacher_outputs(batch)["output"], expected)
    with UnitReader(network, [], units="channels", temperature=1.0, masks={}) as reader:
        reader.read(batch)
    assert torch.equal(batch, BATCH)


def test_labels_are_those_of_the_samples() -> None:
    network = build("in-place input")
    data = synthesize(network, SPEC, num_samples=32, options=QUICK)
    batch = next(iter(data.loader(32)))
    assert batch.outputs is not None
    torch.testing.assert_close(network(batch.inputs.clone()).detach(), batch.outputs["output"])
