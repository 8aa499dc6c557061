"""The calibration sets of the quality study: noise, every generator at several strengths and sizes, real data, worse.

A set is made once from its name and kept in a folder; a network's sets differ from another's only in their real data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from common import data_folder, is_complete, load_case, networks
from torch.nn import functional

import dfq_plugins
from dfq_plugins import InputSpec
from dfq_plugins.data.readers import normalize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with its real data: for calibration, and other samples with labels for measuring."""

    name: str
    network: nn.Module
    spec: InputSpec
    real: Tensor
    inputs: Tensor
    labels: Tensor


TEST_SAMPLES = 1000
SEED = 0
SHARD, LARGEST = 256, 1024
PRIORS = {"total_variation_weight": 0.01, "l2_weight": 0.01, "blur_weight": 0.1}
SYNTHETIC: dict[str, tuple[str, int, dict[str, Any]]] = {
    **{f"gaussian, {count}": ("gaussian", count, {}) for count in (16, 256, 1024)},
    "gaussian unclamped, 128": ("gaussian", 128, {"clamp": False}),
    **{f"bns, {count}": ("bns", count, {}) for count in (16, 64, 256, 1024)},
    **{f"bns {count} iterations, 128": ("bns", 128, {"iterations": count}) for count in (1, 5, 20)},
    **{
        f"bns {count} iterations from white noise, 128": ("bns", 128, {"iterations": count, "start": "white"})
        for count in (1, 5, 20, 100)
    },
    "bns unclamped, 64": ("bns", 64, {"clamp": False}),
    "bns with priors, 64": ("bns", 64, PRIORS),
    **{f"bns+inception, {count}": ("bns+inception", count, {}) for count in (64, 256)},
    **{f"inception, {count}": ("inception", count, {}) for count in (64, 256)},
}
"""Generator, samples and settings of each synthetic set by its name."""


def digits() -> Subject:
    """Return the demo's network; only the first third of its training digits calibrates."""
    from dfq_plugins.demo.data import load_digits
    from dfq_plugins.demo.network import DIGITS_SPEC, digits_network

    training, held_out = load_digits()
    return Subject("digits", digits_network(), DIGITS_SPEC, training.inputs, held_out.inputs, held_out.labels)


def subject(name: str) -> Subject:
    """Return a network of the study by its name."""
    if name == "digits":
        return digits()
    if name == "resnet56_cifar10":
        case, _, real, inputs, labels = load_case("resnet20_cifar10")
        network = networks().build(name)
    else:
        case, network, real, inputs, labels = load_case(name)
    if case.calibration_split == case.test_split:
        real = real[: case.calibration_samples]
    return Subject(name, network, case.spec, real, inputs[:TEST_SAMPLES], labels[:TEST_SAMPLES])


def foreign(spec: InputSpec) -> Tensor:
    """Return 256 inputs of another kind: MNIST, or small photographs in gray for the digits network."""
    import numpy as np

    archive, key = ("cifar10_train4096.npz", "x") if spec.shape == (1, 8, 8) else ("mnist.npz", "x_train")
    pixels = torch.from_numpy(np.load(data_folder() / archive)[key][:256]).float()
    pixels = pixels.mean(-1) if pixels.ndim == 4 else pixels
    resized = functional.interpolate(pixels[:, None], size=spec.shape[1:], mode="bilinear", antialias=True)
    return normalize(resized.expand(-1, spec.channels, -1, -1), spec)


def uniform(spec: InputSpec, count: int) -> Tensor:
    """Return noise that is even over the valid range of each channel."""
    rng = torch.Generator().manual_seed(SEED)
    bounds = spec.bounds
    assert bounds is not None
    low, high = (torch.tensor(edge).view(1, -1, 1, 1) for edge in bounds)
    return low + (high - low) * torch.rand(count, *spec.shape, generator=rng)


def real_sets(real: Tensor, spec: InputSpec) -> dict[str, Callable[[], Tensor]]:
    """Return what is made from real data: few and many samples, and samples spoilt in several ways."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(SEED))
    counts = sorted({min(count, len(real)) for count in (16, 64, 256, 1024)})
    some = real[order[: counts[-2]]]
    center = some.mean((0, 2, 3), keepdim=True)
    pixels = torch.randperm(some[0, 0].numel(), generator=torch.Generator().manual_seed(SEED))
    return {
        **{f"real, {count}": (lambda count=count: real[order[:count]]) for count in counts},
        "real, contrast 0.5": lambda: center + 0.5 * (some - center),
        "real, contrast 0.25": lambda: center + 0.25 * (some - center),
        "real, contrast 1.5": lambda: center + 1.5 * (some - center),
        "real, contrast 3": lambda: center + 3 * (some - center),
        "real, brighter": lambda: some + 0.5 * some.std(),
        "real, pixels shuffled": lambda: some.flatten(2)[:, :, pixels].view_as(some),
        "real, one sample 64 times": lambda: real[order[:1]].expand(64, *spec.shape).contiguous(),
        "real, two samples 32 times": lambda: real[order[:2]].repeat(32, 1, 1, 1),
        "foreign, 256": lambda: foreign(spec),
        "uniform, 64": lambda: uniform(spec, 64),
        "uniform, 1024": lambda: uniform(spec, 1024),
        "mean value, 16": lambda: center.expand(16, *spec.shape).contiguous(),
    }


def set_names(about: Subject) -> list[str]:
    """Return the names of all sets of a network, cheap and telling ones first."""
    return [*real_sets(about.real, about.spec), *SYNTHETIC]


def set_folder(about: Subject, generator: str, options: dict[str, Any], count: int, work: Path) -> Path:
    """Return where a synthetic set is kept."""
    settings = "-".join(map(str, options.values())) or "default"
    return work / f"{about.name}-{generator}-{settings}-{count}"


def make_set(about: Subject, name: str, work: Path) -> Tensor:
    """Return a set's inputs; a synthetic set is kept in the folder `work`."""
    made = real_sets(about.real, about.spec)
    if name in made:
        return made[name]()
    generator, count, options = SYNTHETIC[name]
    if count == SHARD and is_complete(set_folder(about, generator, options, LARGEST, work)):
        count = LARGEST  # its first shard is a set of this size, and saves the work
    folder = set_folder(about, generator, options, count, work)
    if not is_complete(folder):
        dfq_plugins.synthesize(
            about.network,
            about.spec,
            generator=generator,
            num_samples=count,
            seed=SEED,
            options=options,
            output=folder,
        )
    return dfq_plugins.SyntheticDataset.open(folder).inputs(SYNTHETIC[name][1])
