"""The GPU's part of `speed.py`: seconds for 1,024 images, share of the arithmetic peak, synchronization in the loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from peers.random_weights import random_network
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import dfq_plugins
from dfq_plugins.generators.options import BatchNormOptions
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.synthesis.loop import SNAPSHOT_INTERVAL, optimize_inputs
from dfq_plugins.synthesis.objective import InversionObjective

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins import InputSpec

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
SAMPLES, BATCH, SIDE = 1024, 64, 8192
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def bfloat16_peak() -> float:
    """Return the operations a second of a large product of matrices, which is what the hardware really gives."""
    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        left @ right
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(50):
        left @ right
    torch.cuda.synchronize()
    return 50 * 2 * SIDE**3 / (time.perf_counter() - began)


def step_operations(model: nn.Module, spec: InputSpec) -> float:
    """Return the operations of one image in one step: the forward pass and the gradient of the input."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape, device="cuda"))
    return 2.0 * counter.get_total_flops()


def waits_in_the_loop(model: nn.Module, spec: InputSpec) -> dict[str, int]:
    """Return how often the host waits for the GPU in steps between two looks at the loss, by the kind of wait."""
    objective = InversionObjective(frozen_copy(model), spec, BatchNormOptions())
    objective.use_compiled(True)
    inputs, labels = torch.randn(BATCH, *spec.shape, device="cuda"), torch.zeros(BATCH, dtype=torch.long, device="cuda")

    def steps(count: int) -> None:
        options = BatchNormOptions(iterations=count)
        optimize_inputs(
            [inputs.clone()], [labels], objective, spec, options, torch.Generator(), lambda _: None, scale=1.0
        )

    def waits(count: int) -> dict[str, int]:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            steps(count)
        return {event.key: event.count for event in trace.key_averages() if event.key in WAITS}

    steps(5)
    few, many = waits(SNAPSHOT_INTERVAL + 2), waits(2 * SNAPSHOT_INTERVAL)  # both look at the loss as often
    return {kind: many.get(kind, 0) - few.get(kind, 0) for kind in WAITS}


def measure_network(name: str, spec: InputSpec, peak: float) -> dict[str, Any]:
    """Return the figures of one network at the default settings, the second time, when the step is compiled."""
    model = random_network(name).cuda()
    times = []
    for seed in (0, 1, 2):
        began = time.perf_counter()
        data = dfq_plugins.synthesize(model, spec, num_samples=SAMPLES, seed=seed)
        times.append(time.perf_counter() - began)
    operations = step_operations(model, spec) * SAMPLES * BatchNormOptions().iterations
    return {
        "seconds": times,
        "samples": len(data),
        "share of the bf16 peak": operations / times[-1] / peak,
        "waits in eight steps": waits_in_the_loop(model, spec),
    }


def measure_cuda(spec: InputSpec) -> dict[str, Any]:
    """Return the figures of all networks on this GPU."""
    peak = bfloat16_peak()
    about = {"device": torch.cuda.get_device_name(), "bf16 operations a second": peak}
    return {**about, "networks": {name: measure_network(name, spec, peak) for name in NETWORKS}}
