"""How closely two networks agree, output by output: measures that need no labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dfq_plugins.inputs import cloned, count, moved, run_network
from dfq_plugins.model_state import device_of
from dfq_plugins.network.outputs import class_scores, kind_of, matching_outputs, sample_outputs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from dfq_plugins.network.outputs import OutputKind
    from dfq_plugins.types import Inputs, Specification

FEWEST_SAMPLES = 50
"""Below this number of samples, a share of them says too little to be given in percent: one sample is over 2%."""

_MATRIX = 2
_LARGEST_DECIBELS = 150.0
"""Above the precision of float32, so that equal outputs have a finite ratio."""


@dataclass(frozen=True)
class OutputAgreement:
    """How closely one output of a network agrees with that of its reference.

    Args:
        name: path of the output; "output" if the network returns one tensor.
        kind: what it holds: class logits, a map of class logits, or other values.
        samples: number of samples compared.
        decibels: signal-to-noise ratio of the values in dB, at most 150; minus infinity if any value is not finite.
        correlation: Pearson correlation of the values; NaN if one of the two is constant or not finite.
        same_class: share of samples, or of a map's positions, with the same largest logit; None without classes.
        mean_iou: mean over classes of intersection over union, with the reference's class map as the truth; None
            without a class map.
        same_largest: share of samples whose largest value has the same index in both, for vectors that are not known to
            be class logits; None otherwise.
        non_finite: number of samples with NaN or infinity in either network's output; they count as different.
        num_classes: number of classes; None without classes.
    """

    name: str
    kind: OutputKind
    samples: int
    decibels: float
    correlation: float
    same_class: float | None = None
    mean_iou: float | None = None
    same_largest: float | None = None
    non_finite: int = 0
    num_classes: int | None = None

    @property
    def headline(self) -> tuple[str, str]:
        """The share of the same class for a headline, and what to add to its caption."""
        share = self.same_class or 0.0
        if self.samples >= FEWEST_SAMPLES:
            return f"{share:.1%}", ""
        figure = f"{share:.1%}" if self.kind == "class map" else f"{round(share * self.samples)} of {self.samples}"
        return figure, ": too few to tell"

    @property
    def figures(self) -> str:
        """The figures in words."""
        parts = []
        if self.same_class is not None:
            of_map = self.kind == "class map"
            share = f"{self.same_class:.2%} of pixels" if of_map else of_samples(self.same_class, self.samples)
            parts.append(f"same class for {share}")
        if self.mean_iou is not None:
            parts.append(f"mean IoU {self.mean_iou:.1%}")
        parts.append(f"signal-to-noise ratio {self.decibels:.1f} dB")
        if self.same_largest is not None:
            parts.append(f"same largest value for {of_samples(self.same_largest, self.samples)}")
        if self.non_finite:
            parts.append(f"NaN or infinity in {self.non_finite} of {self.samples} samples")
        if self.samples < FEWEST_SAMPLES and (self.same_class is not None or self.same_largest is not None):
            parts.append(f"too few samples to tell ({self.samples})")
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.name}: {self.figures}"


def of_samples(share: float, samples: int) -> str:
    """Return a share of samples in percent, or as a count where there are too few of them.

    >>> of_samples(0.5, 100), of_samples(0.5, 6)
    ('50.00% of samples', '3 of 6 samples')
    """
    return f"{share:.2%} of samples" if samples >= FEWEST_SAMPLES else f"{round(share * samples)} of {samples} samples"


def output_agreement(
    reference: nn.Module,
    other: nn.Module,
    batches: Iterable[Inputs],
    limit: int,
    num_classes: int | None,
    spec: Specification | None = None,
) -> tuple[OutputAgreement, ...]:
    """Compare two networks on up to `limit` inputs, output by output.

    Args:
        reference: the network that decides which outputs there are.
        other: the network to compare with it.
        batches: inputs `(batch, *shape)`.
        limit: number of inputs after which no further batch is read.
        num_classes: number of classes; None or 0 if the networks are not known to be classifiers.
        spec: says how both networks take several inputs; None means by keywords.

    Raises:
        ModelError: they return different outputs, or outputs of different shapes.
    """
    found: dict[str, _Comparison] = {}
    seen = 0
    for batch in batches:
        expected = outputs_of(reference, batch, spec)
        got = matching_outputs(outputs_of(other, batch, spec), expected)
        for name, output in expected.items():
            found.setdefault(name, _Comparison(name, num_classes)).add(output, got[name])
        seen += count(batch)
        if seen >= limit:
            break
    return tuple(comparison.result() for comparison in found.values())


def class_agreement(found: Iterable[OutputAgreement]) -> float:
    """Return the share of samples, or of positions, with the same class in the first output with classes; else NaN."""
    first = class_output(found)
    return math.nan if first is None or first.same_class is None else first.same_class


def class_output(found: Iterable[OutputAgreement]) -> OutputAgreement | None:
    """Return the agreement of the first output with classes; None without one."""
    return next((output for output in found if output.same_class is not None), None)


@torch.no_grad()
def outputs_of(model: nn.Module, batch: Inputs, spec: Specification | None = None) -> dict[str, Tensor]:
    """Return a network's outputs for one batch by name, on the CPU in float32."""
    # A copy, because a forward pass may write into its input.
    returned = run_network(model, moved(cloned(batch), device_of(model)), spec)
    return {name: tensor.float().cpu() for name, tensor in sample_outputs(returned, count(batch)).items()}


class _Comparison:
    """Sums over batches for one output."""

    def __init__(self, name: str, num_classes: int | None) -> None:
        self._name, self._classes = name, num_classes
        self._kind: OutputKind = "values"
        self._samples = self._non_finite = self._rows = self._same = 0
        self._sums = torch.zeros(6, dtype=torch.float64)
        self._confusion = torch.zeros(num_classes or 0, num_classes or 0, dtype=torch.long)
        self._vectors = False

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Add one batch."""
        self._kind = kind_of(expected, self._classes)
        self._samples += len(expected)
        finite = (expected.isfinite() & found.isfinite()).reshape(len(expected), -1).all(1)
        self._non_finite += int((~finite).sum())
        first, second = expected[finite].double(), found[finite].double()
        self._sums += torch.stack(
            [
                torch.tensor(float(first.numel()), dtype=torch.float64),
                *(first.sum(), second.sum(), first.square().sum(), second.square().sum()),
                (first - second).square().sum(),
            ]
        )
        scores = class_scores(expected, self._classes)
        if scores is not None:
            self._rows += len(scores)
            chosen, named = (class_scores(part, self._classes).argmax(1) for part in (first, second))  # type: ignore[union-attr]
            self._same += int((chosen == named).sum())
            classes = self._classes or 0
            self._confusion += torch.bincount(chosen * classes + named, minlength=classes**2).view(classes, classes)
        elif expected.ndim == _MATRIX and expected.shape[1] > 1:
            self._vectors = True
            self._rows += len(expected)
            self._same += int((first.argmax(1) == second.argmax(1)).sum())

    def result(self) -> OutputAgreement:
        """Return the record of all batches."""
        share = self._same / self._rows if self._rows else None
        whole = not self._non_finite
        return OutputAgreement(
            name=self._name,
            kind=self._kind,
            samples=self._samples,
            decibels=self._decibels() if whole else -math.inf,
            correlation=self._correlation() if whole else math.nan,
            same_class=None if self._kind == "values" else share,
            mean_iou=self._mean_iou() if self._kind == "class map" else None,
            same_largest=share if self._vectors else None,
            non_finite=self._non_finite,
            num_classes=None if self._kind == "values" else self._classes,
        )

    def _decibels(self) -> float:
        """Return 10 log10 of the reference's power over that of the difference."""
        power, noise = float(self._sums[3]), float(self._sums[5])
        if noise == 0:
            return _LARGEST_DECIBELS
        return min(10 * math.log10(power / noise), _LARGEST_DECIBELS) if power else -math.inf

    def _correlation(self) -> float:
        count, first, second, squares, others, noise = self._sums.tolist()
        product = (squares + others - noise) / 2
        spread = (squares - first**2 / count) * (others - second**2 / count)
        return (product - first * second / count) / math.sqrt(spread) if spread > 0 else math.nan

    def _mean_iou(self) -> float:
        both = self._confusion.diagonal().double()
        union = self._confusion.sum(0) + self._confusion.sum(1) - both
        present = union > 0
        return float((both[present] / union[present]).mean()) if bool(present.any()) else 0.0
