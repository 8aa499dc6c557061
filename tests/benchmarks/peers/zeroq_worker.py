"""Runs the plain loop in a process of its own, as a script would: python zeroq_worker.py NETWORK BATCH THREADS.

Each line `{"steps": n}` on standard input is answered with the seconds that n steps took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.zeroq import zeroq_step
from speed import load


def main() -> None:
    """Answer orders until the input ends."""
    torch.set_num_threads(int(sys.argv[3]))
    network, spec = load(sys.argv[1])
    inputs = torch.randn(int(sys.argv[2]), *spec.shape, generator=torch.Generator().manual_seed(0))
    step = zeroq_step(network.requires_grad_(requires_grad=False), inputs)
    step()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(json.loads(line)["steps"]):
            step()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
