"""Runs in the peer's environment: makes images for each line of JSON on standard input.

python mct_worker.py NETWORK THREADS, where NETWORK is `torchvision:NAME` or one of the data pack's.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import model_compression_toolkit as mct
import torch
from random_weights import random_network

SMALL = 32


def load(name: str) -> tuple[torch.nn.Module, int]:
    """Return the network in eval mode and the size of its images."""
    if name.startswith("torchvision:"):
        return random_network(name.removeprefix("torchvision:")), 224
    path = Path(__file__).resolve().parents[4] / "shared" / "data" / "networks.py"
    location = importlib.util.spec_from_file_location("networks", path)
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module.build(name).eval(), SMALL


def main() -> None:
    """Answer orders until the input ends."""
    model, size = load(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        settings = {} if order["iterations"] is None else {"n_iter": order["iterations"]}
        began = time.monotonic()
        config = mct.data_generation.get_pytorch_data_generation_config(**settings)
        images = mct.data_generation.pytorch_data_generation_experimental(
            model=model, n_images=order["images"], output_image_size=(size, size), data_generation_config=config
        )
        seconds = time.monotonic() - began
        if order["output"]:
            made = torch.cat([image if image.ndim == 4 else image[None] for image in images])
            torch.save(made.detach().cpu(), order["output"])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
