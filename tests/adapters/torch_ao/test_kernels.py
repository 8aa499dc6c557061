"""Single operations and small networks whose int8 kernels or patterns torch.ao gets wrong: all agree with float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfq_plugins.types import InputSpec, Recipe
from dfq_torch_ao.calibrator import TorchAoCalibrator
from dfq_torch_ao.options import TorchAoOptions
from dfq_torch_ao.slopes import slope_format

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
SHAPE = (8, 8, 8)
LEAST_DECIBELS = 25.0


class Call(nn.Module):
    """Calls a function with the input, a convolution of it, and a parameter."""

    def __init__(self, function: Callable[..., Any], *parameter: int) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(8, 8, 1)
        self.parameter = nn.Parameter(torch.randn(parameter) * 0.3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.function(inputs, self.conv(inputs), self.parameter)
        return result


class Between(nn.Module):
    """Puts a layer behind a convolution."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(self.conv(inputs))
        return result


class SharedHead(nn.Module):
    """One convolution for two levels, each with a BatchNorm, as in RetinaNet and EfficientDet."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        for norm, variance in zip(self.norms, (0.1, 3.0), strict=True):
            nn.init.normal_(norm.running_mean)
            nn.init.constant_(norm.running_var, variance)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        near, far = self.norms[0](self.head(inputs)), self.norms[1](self.head(inputs[..., ::2, ::2]))
        return torch.cat([near.flatten(2), far.flatten(2)], dim=2)


class Unpooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.unpool = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.MaxPool2d(2, return_indices=True),
            nn.MaxUnpool2d(2),
        )
        self.inner = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pooled, indices = self.pool(self.conv(inputs))
        unpooled: torch.Tensor = self.unpool(self.inner(pooled), indices)
        return unpooled


class SharedActivation(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        small = self.activation(inputs * 0.1)
        return torch.cat([self.activation(inputs), small * 10], dim=1)


class UNet(nn.Module):
    """Two levels, PReLU everywhere, and decoders that begin with 2x2 transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, 8), _block(8, 16), _block(16, 16)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.merge = nn.ModuleList([_block(32, 16), _block(16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first = self.down[0](inputs)
        second = self.down[1](functional.max_pool2d(first, 2))
        hidden = self.down[2](functional.max_pool2d(second, 2))
        hidden = self.merge[0](torch.cat([self.up[0](hidden), second], 1))
        result: torch.Tensor = self.head(self.merge[1](torch.cat([self.up[1](hidden), first], 1)))
        return result


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.PReLU(outputs))


def _slopes(*values: float) -> nn.Module:
    layer = nn.PReLU(len(values))
    layer.weight.data = torch.tensor(values)
    return layer


def _instance_norm() -> nn.Module:
    layer = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    nn.init.normal_(layer.running_mean)
    nn.init.constant_(layer.running_var, 0.3)
    return layer


def decibels(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum()))


def quantize(model: nn.Module, inputs: torch.Tensor, **options: Any) -> nn.Module:
    calibrator = TorchAoCalibrator(TorchAoOptions(output_margin=1.0, **options))
    prepared = calibrator.prepare(model, InputSpec(tuple(inputs.shape[1:])), Recipe.parse("w8a8"))
    calibrator.calibrate(prepared, [inputs])
    return calibrator.convert(prepared)


@torch.no_grad()
def signal_to_noise(make: Callable[[], nn.Module], shape: tuple[int, ...] = SHAPE, **options: Any) -> float:
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(8, *shape)
    return decibels(model(inputs), quantize(model, inputs, **options)(inputs))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "prelu, default slope": lambda: Between(nn.PReLU()),
    "prelu, negative slopes": lambda: Between(_slopes(*[-0.1 * n for n in range(1, 9)])),
    "prelu, large slopes": lambda: Between(_slopes(*[0.4 * n for n in range(1, 9)])),
    "transposed 2x2": lambda: Between(nn.ConvTranspose2d(8, 8, 2, 2)),
    "transposed 2x2, other channels": lambda: Between(nn.ConvTranspose2d(8, 16, 2, 1, dilation=2)),
    "transposed 2x2, groups": lambda: Between(nn.ConvTranspose2d(8, 16, 2, 2, groups=2)),
    "transposed 3x3, other channels": lambda: Between(nn.ConvTranspose2d(8, 4, 3, 2, output_padding=1)),
    "instance norm": lambda: Between(_instance_norm()),
    "same, even kernel": lambda: nn.Conv2d(8, 8, 4, padding="same"),
    "same, dilated": lambda: Between(nn.Conv2d(8, 8, 3, padding="same", dilation=2)),
    "circular": lambda: Between(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
    "reflect": lambda: Between(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
    "replicate": lambda: Between(nn.Conv2d(8, 8, 3, padding="same", padding_mode="replicate")),
    "tanh, then convolution": lambda: nn.Sequential(nn.Tanh(), nn.Conv2d(8, 8, 3)),
    "softmax behind a float operation": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Softmax(1)),
    "shared head": SharedHead,
    "shared leaky relu": lambda: SharedActivation(nn.LeakyReLU(0.1)),
    "shared hardswish": lambda: SharedActivation(nn.Hardswish()),
}

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "add, alpha": (lambda x, y, _: torch.add(x, y, alpha=2), ()),
    "add, alpha, relu": (lambda x, y, _: functional.relu(torch.add(x, y, alpha=-3)), ()),
    "add a number, alpha": (lambda _x, y, _: torch.add(y, 2.0, alpha=3), ()),
    "stack and sum": (lambda x, y, _: torch.stack([x, 3 * y]).sum(0), ()),
    "stack and sum, last": (lambda x, y, _: torch.stack([x, y], dim=-1).sum(dim=-1), ()),
    "sum of a list": (lambda x, y, _: sum([x, y, x]), ()),
    "in place": (lambda x, y, _: y.add_(x), ()),
    "broadcast": (lambda x, y, _: x[:, :1] + y, ()),
    "subtract": (lambda x, y, _: torch.sub(x, y, alpha=0.5), ()),
    "times a parameter": (lambda x, _, p: x * p, (8, 1, 1)),
    "chunk and cat": (lambda x, y, _: torch.cat(torch.chunk(x + y, 2, 1), 1), ()),
    "split, reversed, and cat": (lambda x, y, _: torch.cat((x + y).split([2, 6], 1)[::-1], 1), ()),
    "conv2d": (lambda x, _, p: functional.conv2d(x, p, padding="same"), (8, 8, 3, 3)),
    "conv2d, keywords": (lambda x, _, p: functional.conv2d(input=x, weight=p, padding=1), (8, 8, 3, 3)),
    "conv2d, standardized": (lambda x, _, p: functional.conv2d(x, (p - p.mean()) / p.std()), (8, 8, 3, 3)),
    "conv_transpose2d": (lambda x, _, p: functional.conv_transpose2d(x, p, stride=2), (8, 8, 2, 2)),
    "linear": (lambda x, _, p: functional.linear(x.flatten(1), p), (4, 512)),
    "prelu": (lambda _, y, p: functional.prelu(y, p), (8,)),
    "bicubic": (lambda _, y, __: functional.interpolate(y, scale_factor=2.0, mode="bicubic"), ()),
    "antialias": (lambda _, y, __: functional.interpolate(y, size=(5, 5), mode="bilinear", antialias=True), ()),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("engine", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, engine: str) -> None:
    assert signal_to_noise(LAYERS[name], engine=engine) > LEAST_DECIBELS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    function, parameter = FUNCTIONS[name]
    assert signal_to_noise(lambda: Call(function, *parameter), engine="x86") > LEAST_DECIBELS


@pytest.mark.parametrize("engine", ENGINES)
def test_unet(engine: str) -> None:
    torch.manual_seed(0)
    model, coarse = UNet(), torch.randn(16, 3, 4, 4)
    inputs = functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    with torch.no_grad():
        for _ in range(30):
            model(inputs)
        converted = quantize(model.eval(), inputs, engine=engine)
        assert decibels(model(inputs), converted(inputs)) > LEAST_DECIBELS


def test_transposed_convolutions_stay_in_integers_where_a_right_kernel_exists() -> None:
    model, inputs = Between(nn.ConvTranspose2d(8, 8, 2, 2)).eval(), torch.randn(4, *SHAPE)
    assert TorchAoCalibrator().describe(quantize(model, inputs, engine="x86")).unquantized == ()


def test_float_layers_are_listed_with_the_reason() -> None:
    torch.manual_seed(0)
    listed = dict(
        TorchAoCalibrator().describe(quantize(Between(_instance_norm()).eval(), torch.randn(4, *SHAPE))).unquantized
    )
    assert listed["layer"].startswith("torch.ao's int8 instance norm ignores running statistics")


def test_unpooling_stays_in_float_and_is_listed() -> None:
    """Its outputs are not compared: among equal integers, another one may be the largest."""
    torch.manual_seed(0)
    converted = quantize(Unpooling().eval(), torch.randn(4, *SHAPE))
    assert "unpool" in dict(TorchAoCalibrator().describe(converted).unquantized)


def test_rewrites_leave_the_caller_s_model_alone() -> None:
    model = Between(nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular")).eval()
    quantize(model, torch.randn(4, *SHAPE))
    assert (model.layer.padding, model.layer.padding_mode) == ("same", "circular")


@pytest.mark.parametrize("slopes", [(0.25, 0.25), (-0.3, 0.1), (0.0, 0.0), (-2.0, 3.0), (1.5, 1.5)])
@pytest.mark.parametrize("levels", [3, 15, 255])
def test_one_is_a_level_of_the_slopes(slopes: tuple[float, float], levels: int) -> None:
    scale, zero_point = slope_format(*slopes, levels)
    if levels > 3 or slopes[1] - slopes[0] < 1:
        assert round(1 / scale) * scale == pytest.approx(1)
    assert (0 - zero_point) * scale <= min(0, slopes[0]) + scale / 2
    assert (levels - zero_point) * scale >= max(1, slopes[1]) - scale / 2
