"""Inputs that are normalized one by one, as frames of audio: synthesized as such, from noise of the right color."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import dfq_plugins
from dfq_plugins.errors import UsageError
from dfq_plugins.generators.noise import Noise, draw_noise
from dfq_plugins.generators.start import color_candidates, fitted_noise
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.synthesis.loop import make_valid_
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.options import InversionOptions
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SPEC = InputSpec((128,), standardized_samples=True)
CPU = torch.device("cpu")


class FrameNetwork(nn.Module):
    """Takes frames `(batch, samples)`; its BatchNorm layers are behind the ReLU, and its outputs are probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, (16, 1), (4, 1))
        self.norm1 = nn.BatchNorm2d(12, 1e-3)
        self.conv2 = nn.Conv2d(12, 8, (5, 1))
        self.norm2 = nn.BatchNorm2d(8, 1e-3)
        self.classifier = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(torch.relu(self.conv1(nn.functional.pad(x[:, None, :, None], (0, 0, 6, 6)))))
        x = self.norm2(torch.relu(self.conv2(nn.functional.max_pool2d(x, (2, 1)))))
        return torch.sigmoid(self.classifier(x.mean((2, 3))))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FrameNetwork()
        waves = draw_noise(SPEC, 64, Noise(exponent=1.5), torch.Generator().manual_seed(5), CPU)
        with torch.no_grad():
            for _ in range(60):
                model(waves)
    return frozen_copy(model)


@pytest.mark.parametrize("generator", ["bns", "gaussian"])
def test_every_sample_is_standardized(network: nn.Module, generator: str, tmp_path: Path) -> None:
    options = {"iterations": 4} if generator == "bns" else {}
    made = dfq_plugins.synthesize(
        network, SPEC, generator=generator, num_samples=16, options=options, output=tmp_path / "set"
    )
    frames = made.inputs(16)
    torch.testing.assert_close(frames.mean(1), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.square().mean(1), torch.ones(16), atol=1e-4, rtol=0)
    assert dfq_plugins.SyntheticDataset.open(tmp_path / "set").manifest.input_spec.standardized_samples


def test_a_constant_sample_stays_finite() -> None:
    assert make_valid_(torch.full((2, 3, 4), 7.0), InputSpec((3, 4), standardized_samples=True)).abs().max() < 1e-3


def test_vectors_may_be_signals(network: nn.Module) -> None:
    """The only axis of a vector may be time: slow waves are fitted with colored noise, at the scale that is known."""
    found = fitted_noise(InversionObjective(network, SPEC, InversionOptions(precision="float32")), SPEC)
    assert found.exponent >= 1
    assert found.scale == 1
    assert [tried.exponent for tried in color_candidates(InputSpec((1,)), Noise())] == [0.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": (8,), "mean": (0.0,) * 8, "std": (1.0,) * 8}, "mean, std and value_range do not apply"),
        ({"shape": (8,), "value_range": (-1.0, 1.0)}, r"got None, None, \(-1.0, 1.0\). Omit them."),
        ({"shape": (1,)}, r"one value has no variance, .* got the shape \(1,\)"),
    ],
)
def test_what_contradicts_standardized_samples_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InputSpec(**fields, standardized_samples=True)  # type: ignore[arg-type]
