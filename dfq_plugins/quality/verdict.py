"""Turns figures into a score and a verdict with its reason. The constants come from the study in docs/quality.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.network.normalization import described, unlikely
from dfq_plugins.quality.inspection import Inspection
from dfq_plugins.quality.teacher import label_balance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.quality.inspection import LayerQuality, Verdict

SURPRISE_UNIT = 0.04
"""Maximum surprise, in nats, of a set that is good enough for W4A4."""

RANGE_UNIT = 0.2
"""Maximum range error, in octaves, of a set that is good enough for W4A4."""

ENOUGH_FOR_W4A4 = 50.0
"""The score at one unit. On ResNet-20, every set with at least this score was at most a point below the mean over real
sets."""

ENOUGH_FOR_W8A8 = 25.0
"""The score at three units."""


def score(surprise: float, range_error: float) -> float:
    """Return 0 (useless) to 100 (exactly as recorded), determined by the worse of the two errors.

    `score = 100 / (1 + max(surprise / SURPRISE_UNIT, range_error / RANGE_UNIT))`

    >>> score(0.0, 0.0), score(SURPRISE_UNIT, 0.0)
    (100.0, 50.0)
    """
    return 100.0 / (1.0 + max(surprise / SURPRISE_UNIT, range_error / RANGE_UNIT))


def mean_divergence(layers: Sequence[LayerQuality]) -> float | None:
    """Return the mean over layers in nats; None without layers."""
    return _mean([layer.divergence for layer in layers])


def mean_surprise(layers: Sequence[LayerQuality]) -> float | None:
    """Return the mean over layers in nats; None without layers."""
    return _mean([layer.surprise for layer in layers])


def mean_range_error(layers: Sequence[LayerQuality]) -> float | None:
    """Return the mean distance of the ranges from the expected ones, in octaves; None without such layers."""
    return _mean([abs(layer.range_octaves) for layer in layers if layer.range_octaves is not None])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def judged(
    *,
    num_samples: int,
    layers: tuple[LayerQuality, ...],
    label_counts: tuple[int, ...],
    confidence: float | None,
    diversity: float | None,
    clamped: float | None,
    why_not: str,
    impossible: str = "",
) -> Inspection:
    """Return the complete record: the given figures and those derived from them.

    Args:
        num_samples: see `Inspection`, as for all arguments except `why_not` and `impossible`.
        layers: empty if the network has no recorded statistics.
        label_counts: empty if the network is not a classifier.
        confidence: None if the network is not a classifier.
        diversity: None if the network has no layer with weights.
        clamped: None if the valid range is unknown.
        why_not: why the network's statistics cannot be used; empty if they can.
        impossible: why no data can have the input specification; empty if some can.
    """
    surprise, range_error = mean_surprise(layers), mean_range_error(layers)
    points = None if surprise is None or range_error is None else score(surprise, range_error)
    word, reason = _verdict(points, layers)
    divergence = mean_divergence(layers)
    if fault := impossible or unlikely(clamped, divergence):
        reason = f"{described(fault)} {reason}"
    return Inspection(
        num_samples=num_samples,
        layers=layers,
        divergence=divergence,
        surprise=surprise,
        range_error=range_error,
        confidence=confidence,
        label_balance=label_balance(label_counts) if label_counts else None,
        label_counts=label_counts,
        diversity=diversity,
        clamped=clamped,
        score=points,
        verdict=word,
        reason=reason,
        notes=_notes(label_counts, diversity, clamped, why_not),
    )


def _verdict(points: float | None, layers: Sequence[LayerQuality]) -> tuple[Verdict, str]:
    if points is None:
        return "no verdict", "Without recorded BatchNorm statistics, there is nothing to compare the set with."
    if points >= ENOUGH_FOR_W4A4:
        return "enough for W4A4", f"The score {points:.0f} reaches {ENOUGH_FOR_W4A4:.0f}: {_worst(layers)}"
    if points >= ENOUGH_FOR_W8A8:
        return (
            "enough for W8A8",
            f"The score {points:.0f} reaches {ENOUGH_FOR_W8A8:.0f}, not {ENOUGH_FOR_W4A4:.0f}: {_worst(layers)}",
        )
    return (
        "more samples or iterations needed",
        f"The score {points:.0f} is below {ENOUGH_FOR_W8A8:.0f}: {_worst(layers)}",
    )


def _worst(layers: Sequence[LayerQuality]) -> str:
    """Describe where the set deviates most from the recorded statistics, and in which direction."""
    far = max(layers, key=lambda layer: layer.surprise)
    ranged = [layer for layer in layers if layer.range_octaves is not None]
    off = max(ranged, key=lambda layer: abs(layer.range_octaves or 0.0))
    octaves = off.range_octaves or 0.0
    direction = "wider" if octaves > 0 else "narrower"
    return (
        f"the statistics deviate most at {far.name} ({far.surprise:.3f} nats), the range at {off.name} "
        f"({2 ** abs(octaves):.2f} times {direction} than recorded)."
    )


def _notes(
    label_counts: tuple[int, ...], diversity: float | None, clamped: float | None, why_not: str
) -> tuple[str, ...]:
    notes = [f"divergence, ranges, score. {why_not}"] if why_not else []
    if not label_counts:
        notes.append("teacher confidence and label balance. The network is not known to be a classifier.")
    if diversity is None:
        notes.append("diversity. The network has no linear or convolution module whose input could be read.")
    if clamped is None:
        notes.append("values at the clamp. The valid range of the input is unknown; give --value-range.")
    return tuple(notes)
