"""Trains the MNIST teachers of the benchmark `records.py` on the data pack's training images.

    python tests/benchmarks/mnist_teachers.py --work FOLDER [--epochs 8] [--networks lenet5 hinton1200]

Weights go to FOLDER/NAME.safetensors; a network that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mnist_networks
import numpy as np
import torch
from common import accuracy, data_folder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

TEACHERS = ("lenet5", "lenet5_batch_norm", "hinton1200")
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


def load_mnist(split: str) -> tuple[Tensor, Tensor]:
    """Return the normalized images `(images, 1, 28, 28)` and labels of `train` or `test`."""
    with np.load(data_folder() / "mnist.npz") as arrays:
        pixels, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    (mean,), (std,) = mnist_networks.SPEC.mean, mnist_networks.SPEC.std
    images = (torch.from_numpy(pixels).float()[:, None] / 255 - mean) / std
    return images, torch.from_numpy(labels).long()


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train with cross-entropy, Adam and a cosine schedule; return the network in eval mode."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    steps = epochs * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=rng).split(BATCH_SIZE)[: len(images) // BATCH_SIZE]:
            loss = functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def teacher(name: str, work: Path, epochs: int) -> nn.Module:
    """Return a trained teacher, from the folder where it lies there."""
    torch.manual_seed(0)
    network, path = getattr(mnist_networks, name)(), work / f"{name}.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
        return network.eval()
    began = time.monotonic()
    train(network, *load_mnist("train"), epochs, seed=0)
    work.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path)
    print(f"{name}: trained {epochs} epochs in {time.monotonic() - began:.0f} s", flush=True)
    return network


def main() -> None:
    """Train what is asked for and missing, and print the test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--networks", nargs="+", choices=TEACHERS, default=TEACHERS)
    arguments = parser.parse_args()
    images, labels = load_mnist("test")
    for name in arguments.networks:
        network = teacher(name, arguments.work, arguments.epochs)
        print(f"{name}: {accuracy(network, images, labels):.2f} % of the test images", flush=True)


if __name__ == "__main__":
    main()
