"""Draws the README's picture: real digits, synthetic ones, and how well each set fits the network's own records.

python tests/benchmarks/picture.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

import dfq_plugins
from dfq_plugins.demo.data import load_digits
from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.statistics.batch_norm import layer_divergences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "overview.png"
SIDE = 6
GENERATORS = ("bns+inception", "bns", "gaussian")
COLORS = {"real digits": "#4c8c4a", "bns+inception": "#8e6bbf", "bns": "#2f7ebc", "gaussian": "#b0b0b0"}


def draw_grid(axes: Axes, inputs: torch.Tensor, title: str) -> None:
    """Draw the first images as one mosaic."""
    tiles = [torch.nn.functional.pad(image[0], (1, 1, 1, 1), value=float(inputs.min())) for image in inputs[: SIDE**2]]
    rows = [torch.cat(tiles[start : start + SIDE], 1) for start in range(0, SIDE**2, SIDE)]
    axes.imshow(torch.cat(rows), cmap="gray_r")
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def main() -> None:
    """Synthesize, draw, save."""
    network = digits_network()
    real, _ = load_digits()
    sets = {"real digits": real.inputs[:256]}
    for name in GENERATORS:
        sets[name] = dfq_plugins.synthesize(network, DIGITS_SPEC, generator=name, num_samples=256).inputs()
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.7))
    draw_grid(panels[0], sets["real digits"], "real, for comparison")
    draw_grid(panels[1], sets["bns+inception"], "synthetic: bns+inception")
    draw_grid(panels[2], sets["bns"], "synthetic: bns")
    for name, inputs in sets.items():
        layers = layer_divergences(network, inputs.split(64), DIGITS_SPEC)
        panels[3].plot(range(len(layers)), list(layers.values()), "o-", label=name, color=COLORS[name], ms=4)
    panels[3].set_yscale("log")
    panels[3].set_xlabel("layer, from the input on")
    panels[3].set_ylabel("divergence from training (nats)")
    panels[3].set_title("distance from what training recorded", fontsize=11)
    panels[3].set_xticks(range(len(layers)))
    panels[3].legend(fontsize=9, loc="center right", bbox_to_anchor=(1, 0.66))
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110, facecolor="white")
    print(f"wrote {PICTURE.name}")


if __name__ == "__main__":
    main()
