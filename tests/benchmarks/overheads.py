"""What the product adds: memory with the number of images, time in a framework's calibration loop, time of the import.

python tests/benchmarks/overheads.py
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import preprocess_for_quantize, quantize
from common import load_case, networks, write_result
from pytorch_quantization import nn as quant_nn
from pytorch_quantization import quant_modules
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx

import dfq_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

NETWORK = "resnet20_cifar10"
MEMORY_SAMPLES, MEMORY_ITERATIONS = (512, 4096), 5
LOOP_SAMPLES, BATCH = 1024, 64

SYNTHESIS = """
import json, resource, sys
from common import load_case
import dfq_plugins
case, network, *_ = load_case(sys.argv[1])
dfq_plugins.synthesize(
    network, case.spec, num_samples=int(sys.argv[2]), options={"iterations": int(sys.argv[3]), "compile": "always"}
)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


def peak_memory(samples: int) -> float:
    """Return the peak resident memory in MiB of a process that synthesizes so many images, a few iterations each."""
    command = [sys.executable, "-c", SYNTHESIS, NETWORK, str(samples), str(MEMORY_ITERATIONS)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    return float(json.loads(run.stdout.splitlines()[-1]))


def memory(rounds: int) -> dict[str, Any]:
    """Return peak memory by number of images, and the ratio of each round."""
    pairs = [[peak_memory(samples) for samples in MEMORY_SAMPLES] for _ in range(rounds)]
    return {"samples": MEMORY_SAMPLES, "MiB": pairs, "ratios": [many / few for few, many in pairs]}


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def observed_networks(network: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Return the network as each framework's own flow prepares it for calibration."""
    quant_modules.initialize()
    try:
        patched = networks().build(NETWORK)
    finally:
        quant_modules.deactivate()
    for module in patched.modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            module.disable_quant()
            module.enable_calib()
    return {
        "torch.ao": prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping("x86"), (example,)),
        "pytorch-quantization": patched.eval(),
        "brevitas": quantize(preprocess_for_quantize(copy.deepcopy(network))).eval(),
    }


def bare_loop(model: nn.Module, inputs: Tensor) -> None:
    """Run the framework's own calibration loop: batches of a tensor in memory."""
    with torch.no_grad():
        for batch in inputs.split(BATCH):
            model(batch)


def loops(rounds: int) -> dict[str, Any]:
    """Return the time of our forward loop over the bare one, by framework; the two take turns."""
    case, network, *_ = load_case(NETWORK)
    data = dfq_plugins.synthesize(network, case.spec, generator="gaussian", num_samples=LOOP_SAMPLES)
    inputs = data.inputs()
    ratios: dict[str, list[float]] = {}
    for name, model in observed_networks(network.eval(), inputs[:1]).items():

        def both(model: nn.Module = model) -> float:
            ours, bare = (lambda: data.forward_loop(model, BATCH)), (lambda: bare_loop(model, inputs))
            return seconds(ours) / seconds(bare)

        with calibration_mode(model):  # changes nothing in networks of the other frameworks
            both()
            ratios[name] = [both() for _ in range(rounds)]
    return {"samples": LOOP_SAMPLES, "batch": BATCH, "ratios": ratios}


def imports(rounds: int) -> dict[str, Any]:
    """Return the milliseconds that the import adds to an empty program, round by round."""

    def program(text: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", text], check=True))

    program("import dfq_plugins")
    added = [1000 * (program("import dfq_plugins") - program("pass")) for _ in range(rounds)]
    return {"milliseconds": added}


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    record = {"imports": imports(4 * arguments.rounds), "loops": loops(2 * arguments.rounds), "memory": memory(3)}
    print("import adds", statistics.median(record["imports"]["milliseconds"]), "ms")
    print("loops", {name: statistics.median(values) for name, values in record["loops"]["ratios"].items()})
    print("memory", record["memory"]["MiB"])
    write_result("overheads", record)


if __name__ == "__main__":
    main()
