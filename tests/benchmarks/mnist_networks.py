"""The networks of the benchmark on MNIST: teachers, and students of half their width. Each is a factory for `dfq`."""

from __future__ import annotations

from torch import nn

from dfq_plugins import InputSpec

SPEC = InputSpec((1, 28, 28), (0.1307,), (0.3081,), (0.0, 1.0), 10)
"""MNIST as these networks take it: gray values from 0 to 1, less their mean, by their standard deviation."""


def _lenet(first: int, second: int, third: int, fourth: int, *, batch_norm: bool = False) -> nn.Sequential:
    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if batch_norm else []

    return nn.Sequential(
        *(nn.Conv2d(1, first, 5, padding=2, bias=not batch_norm), *norm(first), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 5, bias=not batch_norm), *norm(second), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(25 * second, third), nn.ReLU(), nn.Linear(third, fourth), nn.ReLU()),
        nn.Linear(fourth, 10),
    )


def lenet5() -> nn.Sequential:
    """Return LeNet-5 with rectifiers and maximum pooling (LeCun et al. 1998, as it is usually built today)."""
    return _lenet(6, 16, 120, 84)


def lenet5_batch_norm() -> nn.Sequential:
    """Return LeNet-5 with BatchNorm behind its convolutions."""
    return _lenet(6, 16, 120, 84, batch_norm=True)


def lenet5_half() -> nn.Sequential:
    """Return LeNet-5 with half as many units in each layer."""
    return _lenet(3, 8, 60, 42)


def _fully_connected(width: int, *, dropout: bool = False) -> nn.Sequential:
    def drop(share: float) -> list[nn.Module]:
        return [nn.Dropout(share)] if dropout else []

    return nn.Sequential(
        *(nn.Flatten(), *drop(0.2), nn.Linear(784, width), nn.ReLU(), *drop(0.5)),
        *(nn.Linear(width, width), nn.ReLU(), *drop(0.5), nn.Linear(width, 10)),
    )


def hinton1200() -> nn.Sequential:
    """Return two hidden layers of 1,200 units, with dropout in training (Hinton et al. 2015)."""
    return _fully_connected(1200, dropout=True)


def hinton800() -> nn.Sequential:
    """Return two hidden layers of 800 units."""
    return _fully_connected(800)
