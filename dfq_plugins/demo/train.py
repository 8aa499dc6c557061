"""Train the digits network and write its weights: `python -m dfq_plugins.demo.train`."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from dfq_plugins.demo.data import Digits, load_digits
from dfq_plugins.demo.network import WEIGHTS, DigitsNetwork

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


def shifted(inputs: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return each image `(batch, 1, 8, 8)` shifted by -1, 0 or 1 pixels on both axes, filled with background."""
    padded = functional.pad(inputs, (1, 1, 1, 1), value=float(inputs.min()))
    rows, columns = torch.randint(0, 3, (2, len(inputs)), generator=rng).tolist()
    height, width = inputs.shape[2:]
    moved = [image[:, r : r + height, c : c + width] for image, r, c in zip(padded, rows, columns, strict=True)]
    return torch.stack(moved)


def accuracy(network: nn.Module, digits: Digits) -> float:
    """Return the top-1 accuracy, from 0 to 1."""
    with torch.no_grad():
        return float((network(digits.inputs).argmax(1) == digits.labels).float().mean())


def train(digits: Digits, *, epochs: int = 80, seed: int = 0) -> DigitsNetwork:
    """Return a digits network trained with AdamW under a one-cycle schedule, in eval mode.

    Args:
        digits: the training part.
        epochs: number of passes over the training part.
        seed: seed of the initial weights, the order of the images and their shifts.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsNetwork()
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(digits.labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(digits.labels), generator=rng)
        for chosen in order[: steps // epochs * BATCH_SIZE].reshape(-1, BATCH_SIZE):
            logits = network(shifted(digits.inputs[chosen], rng))
            loss = functional.cross_entropy(logits, digits.labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


@click.command()
@click.option("--epochs", default=80, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
@click.option("--output", default=WEIGHTS, type=click.Path(dir_okay=False, path_type=Path), show_default=True)
def main(epochs: int, seed: int, output: Path) -> None:
    """Train the digits network on the training part, measure it on the held-out part, and write its weights."""
    training, held_out = load_digits()
    network = train(training, epochs=epochs, seed=seed)
    save_file(network.state_dict(), output)
    click.echo(f"{accuracy(network, held_out):.2%} of {len(held_out.labels)} held-out digits, written to {output}")


if __name__ == "__main__":
    main()
