"""Runs `dfq` in this process, on a small network in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner

from dfq_plugins.cli import cli

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

NETWORK = """
import torch
from torch import nn

def network():
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(4, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
        model[1].running_mean += torch.rand(4, generator=rng)
        model[1].running_var *= 0.5
    return model

def other():
    model = network()
    model[5].bias.data += 1
    return model
"""
"""A module with a network of five classes, and one of the same shapes with another bias."""

SPEC = ["--shape", "3,8,8", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--value-range", "0,1"]

CLASSES = ["--num-classes", "5"]


def run(*arguments: object, code: int = 0) -> Result:
    """Run `dfq` with these arguments, and require its exit code."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def network_file(folder: Path, source: str = NETWORK) -> str:
    """Write the module, and return its `network` as an argument of `dfq`."""
    path = folder / "net.py"
    path.write_text(source)
    return f"{path}:network"
