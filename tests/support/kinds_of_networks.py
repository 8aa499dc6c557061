"""Tiny networks, each of another kind: what connects their layers, and what they take and return."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Classifier(nn.Module):
    """Features, a global average and a linear classifier."""

    def __init__(self, *features: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.features(inputs).flatten(2).mean(2))


class Downsampling(nn.Module):
    """A residual block whose input two layers read behind a ReLU that is not in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.first, self.second = conv_norm(8, 16, stride=2), conv_norm(16, 16)
        self.shortcut = conv_norm(8, 16, 1, stride=2)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.stem(inputs))
        return self.relu(self.second(self.relu(self.first(hidden))) + self.shortcut(hidden))


class Excited(nn.Module):
    """Depthwise convolution, hard swish, and a squeeze-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_norm(3, 16, 1), conv_norm(16, 16, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.act, self.gate = nn.Hardswish(), nn.Hardsigmoid()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.act(self.depthwise(self.act(self.expand(inputs))))
        scale = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(hidden, 1)))
        return hidden * self.gate(self.excite(scale))


class Dense(nn.Module):
    """BatchNorm behind a concatenation, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.norm_all = nn.BatchNorm2d(8), nn.BatchNorm2d(16)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        grown = self.grow(functional.relu(self.norm(hidden)))
        return functional.relu(self.norm_all(torch.cat([hidden, grown], 1)))


class PreActivation(nn.Module):
    """BatchNorm and ReLU in front of each convolution, as in ResNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(16) for _ in range(3))
        self.conv1, self.conv2 = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        branch = self.conv1(functional.relu(self.norm1(hidden)))
        hidden = hidden + self.conv2(functional.relu(self.norm2(branch)))
        return functional.relu(self.norm3(hidden))


class Branched(nn.Module):
    """Branches that read one tensor and are concatenated, one with an average pool, as in Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.narrow, self.wide, self.pooled = conv_norm(8, 4, 1), conv_norm(8, 8), conv_norm(8, 4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.stem(inputs))
        pooled = self.pooled(functional.avg_pool2d(hidden, 3, 1, 1))
        return functional.relu(torch.cat([self.narrow(hidden), self.wide(hidden), pooled], 1))


class Shuffled(nn.Module):
    """Half of the channels pass by, and a view and a transpose mix them, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv_norm(3, 16), conv_norm(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        passed, changed = functional.relu(self.stem(inputs)).chunk(2, dim=1)
        joined = torch.cat([passed, functional.relu(self.branch(changed))], 1)
        batch, channels, height, width = joined.shape
        mixed = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return mixed.view(batch, channels, height, width)


class Reparameterized(nn.Module):
    """Parallel convolutions and a BatchNorm of the input itself are added, as in RepVGG."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16)
        self.wide, self.narrow, self.identity = conv_norm(16, 16), conv_norm(16, 16, 1), nn.BatchNorm2d(16)
        self.act = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.act(self.stem(inputs))
        return self.act(self.wide(hidden) + self.narrow(hidden) + self.identity(hidden))


class Dilated(nn.Module):
    """A map of classes from dilated branches, scaled up to the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8, stride=2)
        self.near, self.far = conv_norm(8, 8), conv_norm(8, 8, dilation=4)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.stem(inputs))
        maps = self.head(functional.relu(torch.cat([self.near(hidden), self.far(hidden)], 1)))
        return functional.interpolate(maps, size=inputs.shape[-2:], mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """A map of classes through a 2x2 transposed convolution and a skip connection, as in U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv_norm(3, 8), conv_norm(8, 16)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        skip = functional.relu(self.down(inputs))
        deep = functional.relu(self.deep(functional.max_pool2d(skip, 2)))
        return self.head(torch.cat([skip, self.up(deep)], 1))


class Attentive(nn.Module):
    """Patches, a position embedding, and one block of attention and a perceptron."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 16, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.classifier = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.patches(inputs).flatten(2).transpose(1, 2) + self.position
        batch, length, width = tokens.shape
        heads = self.project(self.norm1(tokens)).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        tokens = tokens + self.perceptron(self.norm2(tokens))
        return self.classifier(tokens.mean(1))


class ChannelsLast(nn.Module):
    """A depthwise convolution, LayerNorm over channels and a perceptron of linear layers, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 2, 2), nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm, self.scale = nn.LayerNorm(16), nn.Parameter(1e-6 * torch.ones(16, 1, 1))
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        branch = self.norm(self.depthwise(hidden).permute(0, 2, 3, 1))
        branch = self.narrow(functional.gelu(self.wide(branch))).permute(0, 3, 1, 2)
        return hidden + self.scale * branch


def video() -> nn.Module:
    """Convolutions over time and space."""
    spatial = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1), bias=False)
    temporal = nn.Conv3d(8, 16, (3, 1, 1), padding=(1, 0, 0), bias=False)
    return Classifier(spatial, nn.BatchNorm3d(8), nn.ReLU(), temporal, nn.BatchNorm3d(16), nn.ReLU())


def sequence() -> nn.Module:
    """Convolutions over one axis."""
    first, second = nn.Conv1d(2, 8, 5, padding=2, bias=False), nn.Conv1d(8, 16, 3, dilation=2)
    return Classifier(first, nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), second, nn.ReLU())
