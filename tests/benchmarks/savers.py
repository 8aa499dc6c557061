"""Ways to need fewer iterations, each tried against the default: divergence, accuracy and time of a whole set.

    python tests/benchmarks/savers.py

All on ResNet-20: two shards of 256 images, the default objective, start and augmentation. What a row changes is how
the inputs move. One fixed consumer, pytorch-quantization at W4A4, all layers.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, load_case, read_result, throughout, write_result
from torch import Tensor, nn

import dfq_plugins
from dfq_plugins.generators.noise import draw_noise
from dfq_plugins.generators.options import BatchNormOptions
from dfq_plugins.generators.start import fitted_noise, known_noise
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.network.allocation import kept_memory
from dfq_plugins.statistics.augmentation import draw_maps
from dfq_plugins.statistics.batch_norm import layer_divergences
from dfq_plugins.synthesis.loop import augmentation_of, make_valid_, optimize_inputs
from dfq_plugins.synthesis.objective import InversionObjective

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.generators.noise import Noise

NETWORK, RESULT = "resnet20_cifar10", "savers"
SHARDS, SHARD = 2, 256
TEST_SAMPLES = 5000
NO_LABELS = torch.zeros(SHARD, dtype=torch.long)


@dataclass(frozen=True)
class Subject:
    """What all rows share: network, specification, compiled objective and starting noise."""

    network: nn.Module
    spec: dfq_plugins.InputSpec
    objective: InversionObjective
    noise: Noise

    def start(self, rng: torch.Generator, noise: Noise | None = None) -> Tensor:
        """Return a shard of starting noise."""
        return draw_noise(self.spec, SHARD, noise or self.noise, rng, torch.device("cpu"))

    def gradient(self, inputs: Tensor, rng: torch.Generator) -> tuple[float, Tensor]:
        """Return loss and gradient of a shard under one draw of the augmentation."""
        maps = draw_maps(augmentation_of(BatchNormOptions(), self.spec), tuple(inputs.shape), rng)
        loss, gradient, _ = self.objective(inputs, NO_LABELS, None, maps)
        return float(loss), gradient


def product_loop(subject: Subject, rng: torch.Generator, _former: Tensor | None, **options: Any) -> Tensor:
    """Take the product's own loop with some options changed."""
    chosen = BatchNormOptions(**options)
    noise = known_noise(subject.spec) if chosen.start == "white" else subject.noise
    inputs, scale = subject.start(rng, noise), noise.scale
    optimize_inputs([inputs], [NO_LABELS], subject.objective, subject.spec, chosen, rng, lambda _: None, scale=scale)
    return inputs


def warm_start(subject: Subject, rng: torch.Generator, former: Tensor | None, iterations: int) -> Tensor:
    """Begin a shard at the former one's result, rolled by half its side and half replaced by fresh noise."""
    inputs = subject.start(rng)
    if former is None:
        iterations *= 2
    else:
        inputs = 0.5**0.5 * (inputs + former.roll((16, 16), (2, 3)))
    options, scale = BatchNormOptions(iterations=iterations), subject.noise.scale
    optimize_inputs([inputs], [NO_LABELS], subject.objective, subject.spec, options, rng, lambda _: None, scale=scale)
    return inputs


def stepped(
    subject: Subject,
    rng: torch.Generator,
    _former: Tensor | None,
    *,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    iterations: int,
    average: float = 0.0,
) -> Tensor:
    """Let any optimizer of torch move the inputs, its rate falling along a half cosine, or average its iterates."""
    variable = subject.start(rng).contiguous().requires_grad_()  # L-BFGS sees one vector
    chosen = optimizer([variable])
    first = [group["lr"] for group in chosen.param_groups]
    mean = variable.detach().clone()
    for step in range(iterations):
        for group, rate in zip(chosen.param_groups, first, strict=True):
            group["lr"] = rate if average else rate * 0.5 * (1 + math.cos(math.pi * step / iterations))

        def closure() -> float:
            loss, gradient = subject.gradient(variable.detach(), rng)
            variable.grad = gradient.contiguous()
            return loss

        chosen.step(closure)
        make_valid_(variable.data, subject.spec)
        mean.lerp_(variable.detach(), 1 - average)
    return mean if average else variable.detach()


def generator_network(subject: Subject, rng: torch.Generator, former: Any, iterations: int, steps: int) -> Tensor:
    """Let one small generator network make every shard: trained for the first, and tuned a little for each further."""
    state = generator_network.__dict__
    if former is None:
        torch.manual_seed(rng.initial_seed())
        state["network"] = nn.Sequential(
            nn.Linear(100, 128 * 64),
            nn.Unflatten(1, (128, 8, 8)),
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 3, 3, padding=1),
            nn.Tanh(),
        ).to(memory_format=torch.channels_last)
        state["optimizer"] = torch.optim.Adam(state["network"].parameters(), lr=1e-3)
    low, high = (torch.tensor(edge).view(1, -1, 1, 1) for edge in subject.spec.bounds or ())
    latent = torch.randn(SHARD, 100, generator=rng)
    for _ in range(iterations if former is None else steps):
        images = low + (high - low) * (state["network"](latent) + 1) / 2
        _, gradient = subject.gradient(images.detach(), rng)
        state["optimizer"].zero_grad()
        images.backward(gradient)
        state["optimizer"].step()
        latent = torch.randn(SHARD, 100, generator=rng)
    with torch.no_grad():
        return low + (high - low) * (state["network"](latent) + 1) / 2


def rows(scale: float) -> dict[str, Callable[..., Tensor]]:
    """Return the ways by name; learning rates are in units of the starting noise, as the product's are."""
    rate = 0.25 * scale
    return {
        "default: Adam, half cosine, 100": partial(product_loop),
        "50 iterations": partial(product_loop, iterations=50),
        "25 iterations": partial(product_loop, iterations=25),
        "200 iterations": partial(product_loop, iterations=200),
        "constant rate, stop on a plateau of 5 %": partial(
            product_loop, schedule="constant", plateau=0.05, iterations=200
        ),
        "half cosine of 200, stop on a plateau of 5 %": partial(product_loop, plateau=0.05, iterations=200),
        "start from white noise": partial(product_loop, start="white"),
        "warm start from the previous shard, 50": partial(warm_start, iterations=50),
        "RAdam": partial(stepped, optimizer=partial(torch.optim.RAdam, lr=rate), iterations=100),
        "Adam with Nesterov's momentum": partial(
            stepped, optimizer=partial(torch.optim.NAdam, lr=rate), iterations=100
        ),
        "average of iterates, constant rate": partial(
            stepped, optimizer=partial(torch.optim.Adam, lr=rate), iterations=100, average=0.9
        ),
        "second order: L-BFGS, 20 x 5": partial(
            stepped,
            optimizer=partial(torch.optim.LBFGS, lr=1.0, max_iter=5, history_size=5),
            iterations=20,
        ),
        "generator network, 300 then 20 per shard": partial(generator_network, iterations=300, steps=20),
    }


def measure(subject: Subject, way: Callable[..., Tensor], seed: int, test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Make a set in one way and judge it."""
    rng = torch.Generator().manual_seed(seed)
    shards: list[Tensor] = []
    began = time.perf_counter()
    with kept_memory():
        for _ in range(SHARDS):
            shards.append(way(subject, rng, shards[-1] if shards else None).detach())
    seconds = time.perf_counter() - began
    layers = layer_divergences(subject.network, shards, subject.spec)
    consumer = {"calibrator": "pytorch-quantization", "recipe": "w4a4"}
    options = throughout(**consumer)
    quantized = dfq_plugins.quantize(subject.network, torch.cat(shards), options=options, spec=subject.spec, **consumer)
    divergence = sum(layers.values()) / len(layers)
    return {"seconds": seconds, "divergence": divergence, "accuracy": accuracy(quantized, *test)}


def main() -> None:
    """Measure every row that the result file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case, network, _, inputs, labels = load_case(NETWORK)
    model = frozen_copy(network)
    objective = InversionObjective(model, case.spec, BatchNormOptions())
    objective.use_compiled(True)
    subject = Subject(model, case.spec, objective, fitted_noise(objective, case.spec))
    subject.gradient(subject.start(torch.Generator()), torch.Generator())  # compiles
    record = read_result(RESULT) or {"rows": {}, "samples": SHARDS * SHARD, "test_samples": TEST_SAMPLES}
    for seed in arguments.seeds:
        for name, way in rows(subject.noise.scale).items():
            if str(seed) not in record["rows"].get(name, {}):
                figures = measure(subject, way, seed, (inputs[:TEST_SAMPLES], labels[:TEST_SAMPLES]))
                print(f"{seed} {name:44s} {figures}", flush=True)
                record["rows"].setdefault(name, {})[str(seed)] = figures
                write_result(RESULT, record)


if __name__ == "__main__":
    main()
