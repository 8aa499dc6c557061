"""Small networks of the kinds that people bring to FINN, and some that FINN has no hardware for."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation())


class Plain(nn.Module):
    """Convolutions with BatchNorm and ReLU, flattened for a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_norm_relu(3, 8), conv_norm_relu(8, 8, stride=2))
        self.linear = nn.Linear(8 * 16, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(inputs).view(inputs.size(0), -1))


class Pooled(nn.Module):
    """Max pooling inside and a global average in front of the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_norm_relu(3, 8), nn.MaxPool2d(2), conv_norm_relu(8, 8))
        self.linear = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(functional.adaptive_avg_pool2d(self.features(inputs), 1).flatten(1))


class Residual(nn.Module):
    """A shortcut that is the input itself, one through a convolution, and one that slices and pads (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 8)
        self.first = nn.Sequential(conv_norm_relu(8, 8), nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.projection = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.third = nn.Conv2d(8, 12, 3, 2, 1)
        self.linear = nn.Linear(12, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        hidden = functional.relu(self.first(hidden) + hidden)
        hidden = functional.relu(self.second(hidden) + self.projection(hidden))
        shortcut = functional.pad(hidden[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.linear(functional.relu(self.third(hidden) + shortcut).mean((2, 3)))


class Depthwise(nn.Module):
    """MobileNet's blocks: depthwise convolutions, ReLU6, one-sided padding as TensorFlow has it."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(
            conv_norm_relu(8, 8, groups=8, activation=nn.ReLU6), conv_norm_relu(8, 12, 1, activation=nn.ReLU6)
        )
        self.linear = nn.Linear(12, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.mean(self.block(self.stem(self.pad(inputs))), dim=(2, 3)))


class DenselyConnected(nn.Module):
    """Concatenations of concatenations, and a BatchNorm that no convolution can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv_norm_relu(3, 4), conv_norm_relu(4, 4), conv_norm_relu(8, 4)
        self.norm, self.linear = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        hidden = torch.cat([hidden, self.first(hidden)], dim=1)
        hidden = torch.cat([hidden, self.second(hidden)], 1)
        return self.linear(functional.relu(self.norm(hidden)).mean((2, 3)))


class LinearBottleneck(nn.Module):
    """MobileNetV2: additions without a ReLU, whose sums the next block and the next addition read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 4, activation=nn.ReLU6)
        self.first, self.second, self.third = self.block(4, 6), self.block(6, 6), self.block(6, 6)
        self.linear = nn.Linear(6, 4)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        wide = conv_norm_relu(inputs, 12, 1, activation=nn.ReLU6)
        narrow = (nn.Conv2d(12, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        return nn.Sequential(wide, conv_norm_relu(12, 12, groups=12, activation=nn.ReLU6), *narrow)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(self.stem(inputs))
        hidden = hidden + self.second(hidden)
        hidden = hidden + self.third(hidden)
        return self.linear(hidden.mean((2, 3)))


class UNet(nn.Module):
    """A decoder that concatenates upsampled maps, by a transposed convolution and by repetition, with earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.bottom, self.right = conv_norm_relu(3, 4), conv_norm_relu(4, 8), conv_norm_relu(16, 4)
        self.up, self.repeat, self.head = (
            nn.ConvTranspose2d(8, 4, 2, 2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 2, 1),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        left = self.left(inputs)
        bottom = self.bottom(functional.max_pool2d(left, 2))
        joined = torch.cat([left, functional.relu(self.up(bottom)), self.repeat(bottom)], 1)
        return self.head(self.right(joined))


class Averaged(nn.Module):
    """Average pooling inside, and adaptive pooling to more than one value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.second = conv_norm_relu(3, 8), nn.AvgPool2d(2), conv_norm_relu(8, 8)
        self.linear = nn.Linear(8 * 4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.pool(self.first(inputs)))
        return self.linear(functional.adaptive_avg_pool2d(hidden, 2).flatten(1))


class PreActivation(nn.Module):
    """BatchNorm and ReLU in front of the convolution, whose input the addition reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        hidden = hidden + self.conv(functional.relu(self.norm(hidden)))
        return self.linear(functional.relu(self.last(hidden)).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = conv_norm_relu(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.gate, self.linear = nn.Sigmoid(), nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        squeezed = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(hidden, 1)))
        return self.linear((hidden * self.gate(self.excite(squeezed))).mean((2, 3)))


class OneDimensional(nn.Module):
    """A convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(8 * 64, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(functional.relu(self.conv(inputs.flatten(2))).flatten(1))


class Headless(nn.Module):
    """A convolution, one module of the caller's, and a convolution."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = conv_norm_relu(3, 8), middle, nn.Conv2d(8, 4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.stem(inputs)))


CONVERTED: tuple[type[nn.Module], ...] = (
    Plain,
    Pooled,
    Residual,
    Depthwise,
    DenselyConnected,
    LinearBottleneck,
    UNet,
    Averaged,
    PreActivation,
)


def trained(kind: type[nn.Module]) -> nn.Module:
    """Build a network whose BatchNorms have the statistics of inputs between -2 and 2, so that it looks trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = kind().train(), torch.randn(32, 3, 8, 8).clamp(-2, 2)
        with torch.no_grad():
            for _ in range(60):
                network(inputs)
        return network.eval()
