"""Report sections on how closely a quantized network matches the float network, based on noise by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dfq_plugins.network.agreement import class_output
from dfq_plugins.report.content import Facts, Section, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.quality.fidelity import Fidelity
    from dfq_plugins.report.content import Block, Cell

SHOWN = 12
"""Number of layers that are shown uncollapsed."""

DECIBELS = (
    "The table shows how much noise quantization adds at each layer: the signal-to-quantization-noise ratio in "
    "decibels. 20 dB is an error of a tenth of the signal, 40 dB a hundredth; every bit adds about 6 dB. Noise "
    "accumulates from layer to layer. If accuracy is lost, look at the layers at the top first."
)


def calibration_section(measured: Sequence[OutputAgreement], held_out: int, fidelity: Fidelity) -> Section:
    """Return the section on how closely the quantized network matches the float network.

    Args:
        measured: how closely each output agrees.
        held_out: number of held-out samples used for measuring; 0 if the calibration samples were used.
        fidelity: noise by layer.
    """
    where = (
        f"{held_out} synthetic samples that were not used for calibration"
        if held_out
        else "the calibration samples themselves, because none were held out"
    )
    text = [f"Measured on {where}. Test on real images before you ship."]
    classes = class_output(measured)
    if classes is not None:
        text.append(
            f"For {_share(classes)}, the quantized network predicts the same class as the float "
            "network. Compare this with the teacher's confidence below: where the float network itself is unsure "
            "about a synthetic sample, a small error changes the predicted class. For the networks in the project's "
            "benchmarks, the agreement on real inputs was far higher than on synthetic ones."
        )
    outputs = Facts(tuple((output.name, output.figures) for output in measured), "Outputs")
    text.append(DECIBELS)
    return Section("Agreement with the float network", tuple(text), (outputs, *_fidelity_blocks(fidelity)))


def _share(output: OutputAgreement) -> str:
    """Return the share of samples with the same class in words, and say where there are too few of them."""
    share, note = output.headline
    what = "positions" if output.kind == "class map" else "samples"
    return f"{share} {'of the ' if '%' in share else ''}{what}" + (", which are too few to tell" if note else "")


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
    """Return the section that compares several quantized networks' noise by layer.

    Args:
        networks: title and fidelity record of each.
        where: the samples measured on.
    """
    ratios = [{layer.name: layer.decibels for layer in fidelity.layers} for _, fidelity in networks]
    names = dict.fromkeys(name for found in ratios for name in found)
    ordered = sorted(names, key=lambda name: min(found.get(name, math.inf) for found in ratios))
    rows = tuple((name, *(_decibels(found[name]) if name in found else None for found in ratios)) for name in ordered)
    notes = tuple(
        f"{title}: cannot be compared: {', '.join(name for name, _ in fidelity.unmatched)}."
        for title, fidelity in networks
        if fidelity.unmatched
    )
    columns = ("Layer", *(title for title, _ in networks))
    caption = (
        f"Signal to noise in dB on {where}, the noisiest layers first; a dash where a framework has no such layer."
    )
    return Section("Noise by layer", (DECIBELS,), (Table(columns, rows, (), caption, notes, decimals=1),))
