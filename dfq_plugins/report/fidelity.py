"""The sections on how well a quantized network follows the float network, from noise by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dfq_plugins.report.content import Facts, Section, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.quality.fidelity import Fidelity
    from dfq_plugins.report.content import Block, Cell

PER_CENT = 100
SHOWN = 12
"""Layers that are shown without a click."""

DECIBELS = (
    "The table shows how much noise the whole numbers add at each layer: the signal-to-quantization-noise ratio in "
    "decibels. 20 dB is an error of a tenth of the signal, 40 dB of a hundredth; every bit is worth about 6 dB. Noise "
    "adds up from layer to layer. The layers on top are the first to look at when accuracy is lost."
)


def calibration_section(agreement: float, held_out: int, fidelity: Fidelity) -> Section:
    """Return the section on how well the quantized network does what the float network does.

    Args:
        agreement: share of samples that both put into the same class; NaN for no classifiers.
        held_out: samples that calibration did not see and this was measured on; 0 where it was measured on its own.
        fidelity: noise by layer.
    """
    where = (
        f"{held_out} synthetic samples that took no part in the calibration"
        if held_out
        else "the calibration samples themselves, because none were held out"
    )
    text = [f"Measured on {where}. Real test images are the last word; run them before you ship."]
    if not math.isnan(agreement):
        text.append(
            f"On {PER_CENT * agreement:.1f} % of the samples the quantized network names the same class as the float "
            "network. Compare it with the teacher's confidence below: where the float network itself is unsure of a "
            "synthetic sample, a small error names another class. On the networks of the project's benchmarks the "
            "agreement on real inputs was far higher than on synthetic ones."
        )
    text.append(DECIBELS)
    return Section("How well the quantized network follows", tuple(text), _fidelity_blocks(fidelity))


def _fidelity_blocks(fidelity: Fidelity) -> tuple[Block, ...]:
    rows = tuple((layer.name, _decibels(layer.decibels)) for layer in fidelity.layers)
    caption = f"{len(rows)} layers on {fidelity.num_samples} samples, the noisiest first."
    columns = ("Layer", "Signal to noise (dB)")
    blocks: list[Block] = [Table(columns, rows[:SHOWN], caption=caption, decimals=1)]
    if rows[SHOWN:]:
        blocks.append(Table(columns, rows[SHOWN:], caption=f"The other {len(rows) - SHOWN}", decimals=1, folded=True))
    if fidelity.unmatched:
        title = f"Quantized operations that could not be compared: {len(fidelity.unmatched)}"
        blocks.append(Facts(fidelity.unmatched, title, folded=True))
    return tuple(blocks)


def _decibels(value: float) -> Cell:
    return "exact" if math.isinf(value) and value > 0 else value


def noise_section(networks: Sequence[tuple[str, Fidelity]], where: str) -> Section:
    """Return the section that compares the noise by layer of several quantized networks.

    Args:
        networks: title and record of each.
        where: what it was measured on.
    """
    ratios = [{layer.name: layer.decibels for layer in fidelity.layers} for _, fidelity in networks]
    names = dict.fromkeys(name for found in ratios for name in found)
    ordered = sorted(names, key=lambda name: min(found.get(name, math.inf) for found in ratios))
    rows = tuple((name, *(_decibels(found[name]) if name in found else None for found in ratios)) for name in ordered)
    notes = tuple(
        f"{title}: not comparable are {', '.join(name for name, _ in fidelity.unmatched)}."
        for title, fidelity in networks
        if fidelity.unmatched
    )
    columns = ("Layer", *(title for title, _ in networks))
    caption = (
        f"Signal to noise in dB on {where}, the noisiest layers first; a dash where a framework has no such layer."
    )
    return Section("Where the noise comes in", (DECIBELS,), (Table(columns, rows, (), caption, notes, decimals=1),))
