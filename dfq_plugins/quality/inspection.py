"""The result of an inspection, as plain data."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["enough for W4A4", "enough for W8A8", "more samples or iterations needed", "no verdict"]


@dataclass(frozen=True)
class LayerQuality:
    """One BatchNorm layer, or the network input if it is standardized.

    Args:
        name: qualified name.
        divergence: `KL(recorded || observed)` of the Gaussians of each channel, in nats, mean over channels: the
            quantity that synthesis minimizes.
        surprise: `KL(observed || recorded)`, with the roles swapped: how unlikely the set's activations are under the
            recorded statistics. Shifting a channel's mean by its recorded standard deviation adds 0.5.
        expected_range: range of the layer's output implied by its BatchNorm parameters (see `ranges.QUANTILE`); None at
            the input.
        observed_range: range of the layer's output on the set.
    """

    name: str
    divergence: float
    surprise: float
    expected_range: float | None = None
    observed_range: float | None = None

    @property
    def range_octaves(self) -> float | None:
        """Base-2 logarithm of observed over expected range: 1 is twice as wide, -1 half as wide.

        >>> LayerQuality("bn1", 0.0, 0.0, 3.0, 6.0).range_octaves
        1.0
        """
        if self.expected_range is None or self.observed_range is None:
            return None
        return math.log2(self.observed_range / self.expected_range)


@dataclass(frozen=True)
class Inspection:
    """How good a calibration set is, as measured with the network. A figure is None if it could not be computed.

    Args:
        num_samples: samples in the set.
        layers: all layers with recorded statistics, from input to output.
        divergence: mean over layers, in nats; 0 matches the training data's statistics exactly.
        surprise: mean over layers, in nats; see `LayerQuality`.
        range_error: mean over layers of the absolute distance from the expected range, in octaves.
        confidence: mean largest class probability.
        label_balance: entropy of the label histogram over the largest possible, 0 to 1.
        label_counts: samples per class; empty if the network is not a classifier.
        diversity: mean nearest-neighbor distance in the network's feature space, relative to the features' size.
        clamped: share of input values at the edge of the valid range.
        score: 0 to 100; 100 would match the recorded Gaussians exactly. Real training data, whose activations are not
            quite Gaussian, reach about 60.
        verdict: the bit widths that the set is good enough for.
        reason: reason for the verdict.
        notes: the figures that could not be computed, and why.
    """

    num_samples: int
    layers: tuple[LayerQuality, ...]
    divergence: float | None
    surprise: float | None
    range_error: float | None
    confidence: float | None
    label_balance: float | None
    label_counts: tuple[int, ...]
    diversity: float | None
    clamped: float | None
    score: float | None
    verdict: Verdict
    reason: str
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON types, each layer with its range in octaves."""
        layers = [asdict(layer) | {"range_octaves": layer.range_octaves} for layer in self.layers]
        return asdict(self) | {"layers": layers}

    def figures(self) -> tuple[tuple[str, str, str], ...]:
        """Return name, value and meaning of each figure as text, a dash for missing values."""
        return (
            ("samples", str(self.num_samples), ""),
            ("BatchNorm divergence", _text(self.divergence, ".4f"), "nats, mean over layers; 0 is best"),
            (
                "surprise",
                _text(self.surprise, ".4f"),
                "nats, how unlikely the activations are under the recorded statistics; 0 is best",
            ),
            ("range error", _text(self.range_error, ".3f"), "octaves, mean over layers; 1 is a factor of two"),
            ("teacher confidence", _text(self.confidence, ".1%"), "mean probability of the predicted class"),
            ("label balance", _text(self.label_balance, ".2f"), "1 if all classes are equally frequent"),
            ("diversity", _text(self.diversity, ".3f"), "distance to the nearest neighbor; 0 means twins"),
            ("values at the clamp", _text(self.clamped, ".1%"), "share at the edge of the valid range"),
            ("score", _text(self.score, ".0f"), "0 to 100; real training data reach about 60"),
        )

    def render_text(self) -> str:
        """Return the figures, the verdict with its reason, and the missing figures, as plain text."""
        names = max(len(name) for name, _, _ in self.figures())
        values = max(len(value) for _, value, _ in self.figures())
        lines = [f"{name:<{names}}  {value:>{values}}  {text}".rstrip() for name, value, text in self.figures()]
        lines += ["", f"Verdict: {self.verdict}. {self.reason}"]
        return "\n".join([*lines, *(f"Not available: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{value}</td><td>{html.escape(text)}</td></tr>"
            for name, value, text in self.figures()
        )
        return f"<table><caption>{html.escape(f'{self.verdict}. {self.reason}')}</caption>{rows}</table>"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
