"""Step times side by side: ours, the floor, a plain loop, and Sony's Model Compression Toolkit; all interleaved.

    python tests/benchmarks/speed.py --peer FOLDER_FOR_ITS_ENVIRONMENT
    python tests/benchmarks/speed.py --device cuda                      # seconds for 1,024 images, share of the peak

The floor is the compiled forward pass and input gradient of the same network at the same precision, with no statistics,
objective, augmentation or optimizer; the same without compilation stands beside it. Floors and ours run as in `dfq
synthesize`, with memory that is kept between steps; the plain loop and the peer each in a process of its own, as
scripts would.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import load_case, read_result, write_result
from peers.mct import ModelCompressionToolkit
from peers.process import PeerProcess
from peers.random_weights import random_network
from torch.profiler import ProfilerActivity, profile

from dfq_plugins.generators.options import BatchNormOptions
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.network.allocation import kept_memory, prefer_huge_pages
from dfq_plugins.network.precision import use_bfloat16
from dfq_plugins.synthesis.compile_choice import step_work
from dfq_plugins.synthesis.loop import optimize_inputs
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

IMAGENET = InputSpec((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.0, 1.0), 1000)
PLAIN_WORKER = Path(__file__).with_name("peers") / "zeroq_worker.py"
PEER_BATCH = 32
MATRIX_SIDE = 4096
PEER_ITERATIONS = (2, 8)


@dataclass(frozen=True)
class Subject:
    """One network, the batch that we take, and the steps of each method in one round."""

    name: str
    batch: int
    steps: int


SUBJECTS = (
    Subject("resnet20_cifar10", 128, 10),
    Subject("torchvision:mobilenet_v2", 32, 2),
    Subject("torchvision:resnet18", 32, 2),
)


def load(name: str) -> tuple[nn.Module, InputSpec]:
    """Return a network and what its input looks like; torchvision's with random weights, which cost the same time."""
    if name.startswith("torchvision:"):
        return random_network(name.removeprefix("torchvision:")), IMAGENET
    case, network, *_ = load_case(name)
    return network, case.spec


def floor_step(model: nn.Module, inputs: torch.Tensor, *, compiled: bool) -> Callable[[], object]:
    """Return the forward pass and input gradient of a network, in our precision and memory format."""
    objective = InversionObjective(model, IMAGENET, BatchNormOptions(batch_norm_weight=0.0, class_weight=1.0))
    network, device = objective.model, inputs.device.type

    def output(values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=objective.half):
            return network(values).float().square().mean()

    function = torch.compile(output, dynamic=False) if compiled else output

    def step() -> object:
        leaf = inputs.detach().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf)

    return step


def our_steps(model: nn.Module, spec: InputSpec, inputs: torch.Tensor) -> Callable[[int], object]:
    """Return a function that takes so many steps of the product's own loop, with its defaults."""
    objective = InversionObjective(model, spec, BatchNormOptions())
    objective.use_compiled(True)
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
    rng = torch.Generator().manual_seed(0)

    def steps(count: int) -> object:
        options = BatchNormOptions(iterations=count)
        return optimize_inputs(
            [inputs.clone()], [labels], objective, spec, options, rng, lambda _event: None, scale=1.0
        )

    return steps


def repeated(step: Callable[[], object]) -> Callable[[int], object]:
    """Return a function that takes a step so many times."""

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def timed(steps: Callable[[int], object], count: int) -> float:
    """Return the milliseconds of one step, after one that warms up."""
    with kept_memory():
        steps(1)
        began = time.perf_counter()
        steps(count)
        return 1000 * (time.perf_counter() - began) / count


def summary(values: list[float]) -> dict[str, float]:
    """Return median and spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(subject: Subject, rounds: int, peer_folder: Path, threads: int) -> dict[str, Any]:
    """Return milliseconds per step of each method, and the ratios of each round."""
    network, spec = load(subject.name)
    model = frozen_copy(network)
    start = torch.randn(subject.batch, *spec.shape, generator=torch.Generator().manual_seed(0))
    ways = {
        "floor": repeated(floor_step(model, start.clone(), compiled=True)),
        "floor, not compiled": repeated(floor_step(model, start.clone(), compiled=False)),
        "ours": our_steps(model, spec, start.clone()),
    }
    for steps in ways.values():
        steps(2)  # compile, warm up
    times: dict[str, list[float]] = {name: [] for name in (*ways, "plain loop", "peer")}
    plain = PeerProcess([sys.executable, PLAIN_WORKER, subject.name, str(subject.batch), str(threads)])
    with ModelCompressionToolkit(peer_folder, subject.name, threads) as peer, plain:
        few, many = PEER_ITERATIONS
        peer.make(PEER_BATCH, few)
        for _ in range(rounds):
            for name, steps in ways.items():
                times[name].append(timed(steps, subject.steps))
            times["plain loop"].append(1000 * plain.ask(steps=subject.steps)["seconds"] / subject.steps)
            seconds = peer.make(PEER_BATCH, many) - peer.make(PEER_BATCH, few)
            times["peer"].append(1000 * seconds / (many - few))
    image = {name: [t / (PEER_BATCH if name == "peer" else subject.batch) for t in ts] for name, ts in times.items()}
    ours = image["ours"]
    ratios = {
        "ours over the floor": [a / b for a, b in zip(ours, image["floor"], strict=True)],
        "ours over the floor, not compiled": [a / b for a, b in zip(ours, image["floor, not compiled"], strict=True)],
        "plain loop over ours": [b / a for a, b in zip(ours, image["plain loop"], strict=True)],
        "peer over ours": [b / a for a, b in zip(ours, image["peer"], strict=True)],
        "peer over the floor": [b / a for a, b in zip(image["floor"], image["peer"], strict=True)],
    }
    return {
        "batch": subject.batch,
        "rounds": rounds,
        "milliseconds per image-iteration": {name: summary(values) for name, values in image.items()},
        "ratios": {name: summary(values) for name, values in ratios.items()},
    }


def profiled(subject: Subject) -> dict[str, float]:
    """Return where the time of our compiled step goes, and how near its convolutions come to the arithmetic peak."""
    network, spec = load(subject.name)
    inputs = torch.randn(subject.batch, *spec.shape, generator=torch.Generator().manual_seed(0))
    steps = our_steps(frozen_copy(network), spec, inputs)
    with kept_memory():
        steps(2)
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            steps(subject.steps)
    times = {event.key: event.self_cpu_time_total / 1e6 for event in trace.key_averages()}
    convolutions = sum(seconds for name, seconds in times.items() if "convolution" in name)
    compiled = sum(seconds for name, seconds in times.items() if "CompiledFxGraph" in name)
    operations = 2 * step_work(network, spec) * subject.batch * subject.steps
    return {
        "convolutions": convolutions / sum(times.values()),
        "compiled kernels between them": compiled / sum(times.values()),
        "the rest": 1 - (convolutions + compiled) / sum(times.values()),
        "arithmetic peak that the convolutions reach": operations / convolutions / matrix_peak(),
    }


def matrix_peak() -> float:
    """Return the operations a second of a large product of matrices at our precision."""
    kind = torch.bfloat16 if use_bfloat16("auto", torch.device("cpu")) else torch.float32
    left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(kind) for _ in range(2))
    seconds = min(timed(lambda count: [left @ right for _ in range(count)], 3) for _ in range(3)) / 1000
    return 2 * MATRIX_SIDE**3 / seconds


def main() -> None:
    """Measure on the processor, or on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, default=Path("peer-environment"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prefer_huge_pages()
    if arguments.device == "cuda":
        from speed_cuda import measure_cuda

        write_result("speed-cuda", measure_cuda(IMAGENET))
        return
    earlier = read_result("speed") or {}  # a run of some networks keeps the others' figures
    networks, shares = earlier.get("networks", {}), earlier.get("profile", {})
    for subject in SUBJECTS:
        if subject.name in arguments.networks:
            shares[subject.name] = profiled(subject)
            networks[subject.name] = measure(subject, arguments.rounds, arguments.peer, arguments.threads)
            for name, ratio in networks[subject.name]["ratios"].items():
                print(f"{subject.name:28s} {name:24s} {ratio['median']:6.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})")
            write_result("speed", {"networks": networks, "profile": shares})


if __name__ == "__main__":
    main()
