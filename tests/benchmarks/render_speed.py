"""Sections of docs/benchmarks.md on time and memory, from the results of `speed.py`, `sets_by_time.py`, `savers.py`
and `overheads.py`; each result file is optional.
"""

from __future__ import annotations

import statistics
from typing import Any

from common import read_result
from render_tables import figure, origin, table

WAYS = ("ours", "floor", "floor, not compiled", "plain loop", "peer")
NAMES = {"peer": "Model Compression Toolkit 2.6.1", "plain loop": "plain loop (ZeroQ's formula)"}
TARGETS = {
    "ours over the floor": "at most 1.15",
    "ours over the floor, not compiled": "",
    "plain loop over ours": "at least 4",
    "peer over ours": "at least 8",
    "peer over the floor": "",
}


def spread(values: dict[str, float], digits: int = 2) -> str:
    """Return a median with its range."""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} to {values['max']:.{digits}f})"


def speed_section() -> str:
    """Return step times and their ratios, by network."""
    record = read_result("speed")
    if record is None:
        return ""
    networks = record["networks"]
    names = [name.removeprefix("torchvision:") for name in networks]
    times = [
        [NAMES.get(way, way), *(spread(one["milliseconds per image-iteration"][way]) for one in networks.values())]
        for way in WAYS
    ]
    ratios = [[name, *(spread(one["ratios"][name]) for one in networks.values()), TARGETS[name]] for name in TARGETS]
    rounds = ", ".join(str(one["rounds"]) for one in networks.values())
    text = (
        "### Time of a step\n\n"
        f"Interleaved, {record['environment']['threads']} threads, median (lowest to highest) of {rounds} rounds. "
        "ResNet-20 has 32 x 32 pixels at batch 128, the others 224 x 224 at batch 32; the toolkit uses its default "
        "batch of 32. The *floor* is just the network's forward pass and input gradient at our precision (bf16 if the "
        "processor has it), compiled and not compiled, without statistics, objective, augmentation or optimizer. The "
        "floor and our step keep freed memory between steps, as `dfq synthesize` does. Milliseconds per image and "
        "iteration:\n"
    )
    return "\n".join([text, table(["", *names], times), table(["ratio", *names, "target"], ratios), profile(record)])


def profile(record: dict[str, Any]) -> str:
    """Return where the time of a step goes, and what that means for the ratios."""
    shares = record.get("profile", {})
    rows = [[part, *(f"{one[part]:.0%}" for one in shares.values())] for part in next(iter(shares.values()), {})]
    text = (
        "Where a step spends its time. The convolutions are those of the processor's library: wide ones run at its "
        "arithmetic peak (that of a large matrix product at the same precision), narrow and depthwise ones wait for "
        "memory. The floor bounds every ratio: no implementation can be faster than the peer by more than *peer over "
        "the floor*.\n"
    )
    names = [name.removeprefix("torchvision:") for name in shares]
    return "\n".join([text, table(["share of a step", *names], rows), origin(record)] if rows else [origin(record)])


def sets_section() -> str:
    """Return quality by time of whole sets."""
    record = read_result("sets-by-time")
    if record is None:
        return ""
    rows = [
        [
            name.replace("peer", NAMES["peer"]),
            str(entry["samples"]),
            f"{entry['seconds']:.0f}",
            f"{entry['divergence']:.4f}",
            *(f"{value:.2f}" for value in entry["accuracy"].values()),
        ]
        for name, entry in sorted(record["sets"].items(), key=lambda item: item[1]["seconds"])
    ]
    consumers = list(next(iter(record["sets"].values()))["accuracy"])
    text = (
        "### Whole sets by time: ResNet-20\n\n"
        f"{record['environment']['threads']} thread(s) for each side. W4A4, all layers and the image, "
        "9,980 test images. "
        "Brevitas restores all of the shift measured on the data (`correction_strength=1`). Within a time budget, the "
        "peer runs as many iterations on 1,024 images as fit, or its 500 iterations on as many batches as fit; both "
        "are shown.\n"
    )
    header = ["set", "images", "seconds", "divergence (nats)", *(f"{name} W4A4" for name in consumers)]
    return "\n".join([text, table(header, rows), comparison(record["sets"]), origin(record)])


def comparison(sets: dict[str, Any]) -> str:
    """Return how many times faster a set of ours was than the peer's default one, if that is no better."""
    ours = [entry for name, entry in sets.items() if name.startswith("ours, seed")]
    if not ours or "peer" not in sets:
        return ""
    ratio = sets["peer"]["seconds"] / statistics.median(entry["seconds"] for entry in ours)
    worse = sum(one > 1.05 * sets["peer"]["layers"][name] for name, one in ours[0]["layers"].items())
    return (
        f"The peer's default set takes {ratio:.1f} times as long as ours (target: 20). In {worse} of "
        f"{len(ours[0]['layers'])} layers, ours diverges more than the peer's.\n"
    )


def savers_section() -> str:
    """Return what was tried to need fewer iterations."""
    record = read_result("savers")
    if record is None:
        return ""
    rows = [
        [name, *(figure([one[key] for one in seeds.values()]) for key in ("seconds", "accuracy")), divergence(seeds)]
        for name, seeds in record["rows"].items()
    ]
    text = (
        "### Fewer iterations: what was tried\n\n"
        f"ResNet-20, {record['samples']} images, pytorch-quantization W4A4, {record['test_samples']} test images. "
        f"The seconds are those of the optimization only, {record['environment']['threads']} thread(s).\n"
    )
    return "\n".join(
        [text, table(["way", "seconds", "top-1", "divergence without augmentation (nats)"], rows), origin(record)]
    )


def divergence(seeds: dict[str, dict[str, float]]) -> str:
    """Return the mean divergence over seeds."""
    return f"{statistics.mean(one['divergence'] for one in seeds.values()):.4f}"


def overheads_section() -> str:
    """Return memory, loop and import."""
    record = read_result("overheads")
    if record is None:
        return ""
    rows = [
        ["peak memory, 4,096 images over 512", f"{statistics.median(record['memory']['ratios']):.3f}", "at most 1.1"],
        *(
            [f"our forward loop over the bare one, {name}", f"{statistics.median(values):.3f}", "at most 1.05"]
            for name, values in record["loops"]["ratios"].items()
        ),
        ["`import dfq_plugins`, added ms", f"{statistics.median(record['imports']['milliseconds']):.1f}", "at most 60"],
    ]
    return "\n".join(["### Overheads\n", table(["measure", "median", "target"], rows), origin(record)])


def cuda_section() -> str:
    """Return the table of a GPU, or how to measure one."""
    record = read_result("speed-cuda")
    if record is None:
        return (
            "### On a GPU\n\nNot measured yet. `python tests/benchmarks/speed.py --device cuda` synthesizes "
            "1,024 images of 224 x 224 for ResNet-18, ResNet-50 and MobileNetV2, and measures seconds, the share of "
            "the bf16 peak, and how often the loop waits for the GPU.\n"
        )
    rows = [
        [name, figure(one["seconds"]), f"{one['share of the bf16 peak']:.0%}", str(one["waits in eight steps"])]
        for name, one in record["networks"].items()
    ]
    head = ["network", "seconds for 1,024 images", "share of the bf16 peak", "waits in eight steps"]
    return "\n".join([f"### On a GPU: {record['device']}\n", table(head, rows), origin(record)])


def time_sections() -> list[str]:
    """Return all sections on time and memory."""
    sections = (speed_section(), cuda_section(), sets_section(), savers_section(), overheads_section())
    return [part for part in sections if part]
