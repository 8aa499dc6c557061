"""The network's view of the samples: its confidence, the classes it predicts, and the diversity of its features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.model_state import ForwardHooks
from dfq_plugins.network.outputs import class_logits, named_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MATRIX = 2
"""Axes of a batch of vectors: classes or features."""

NEIGHBORS_AMONG = 2048
"""Maximum number of samples to compare pairwise; the cost grows quadratically."""


def confidence(logits: Tensor) -> float:
    """Return the mean over samples of the largest class probability, from logits `(samples, classes)`.

    >>> confidence(torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    0.5
    """
    return float(logits.float().softmax(1).amax(1).mean())


def label_balance(counts: Sequence[int]) -> float:
    """Return the entropy of the label histogram, divided by the largest possible for this number of samples.

    Args:
        counts: samples per class.

    Returns:
        1 if all classes (or, with fewer samples than classes, all classes that occur) are equally frequent, 0 if all
        samples have the same class.

    >>> label_balance((2, 2, 2, 2)), label_balance((0, 4, 0, 0))
    (1.0, 0.0)
    """
    samples = sum(counts)
    largest = math.log(min(len(counts), samples))
    if largest == 0:
        return 1.0
    shares = torch.tensor(counts, dtype=torch.float64) / samples
    return float(torch.special.entr(shares).sum()) / largest


def diversity(features: Tensor) -> float:
    """Return the mean distance of a sample to its nearest neighbor, relative to the features' size.

    Args:
        features: `(samples, features)`, at least two samples.

    Returns:
        The mean nearest-neighbor distance divided by the root mean square length of a feature vector; 0 if every sample
        has a duplicate.

    >>> diversity(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
    0.0
    """
    some = features[:NEIGHBORS_AMONG].float()
    size = some.square().sum(1).mean().sqrt()
    # Computed from differences rather than products, so that duplicates are exactly 0 apart.
    distances = torch.cdist(some, some, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.fill_diagonal_(math.inf).amin(1).mean()
    return float(nearest / size) if float(size) > 0 else 0.0


class TeacherHooks(ForwardHooks):
    """Captures the network's outputs and the inputs of its last layer with weights while the context is open.

    Args:
        model: the network; hooks are attached to it while the context is open.
        num_classes: number of its classes; None or 0 if it is not known to be a classifier.
    """

    def __init__(self, model: nn.Module, num_classes: int | None) -> None:
        self._model, self._classes = model, num_classes
        self._latest: Tensor | None = None
        self._features: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def attach(self) -> Iterator[RemovableHandle]:
        """Register the hooks."""
        for module in self._model.modules():
            if isinstance(module, WEIGHTED):
                yield module.register_forward_pre_hook(self._remember)
        yield self._model.register_forward_hook(self._keep)

    def _remember(self, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments:
            self._latest = arguments[0]

    def _keep(self, _module: nn.Module, _arguments: tuple[Any, ...], outputs: Any) -> None:
        logits = class_logits(named_outputs(outputs), self._classes)
        if logits is not None:
            self._outputs.append(logits.detach().float().cpu())
        if self._latest is not None:
            values = self._latest.detach().float().cpu()
            axes = list(range(MATRIX, values.ndim))
            self._features.append(values.mean(axes) if axes else values)
            self._latest = None

    @property
    def logits(self) -> Tensor | None:
        """Class logits `(samples, classes)`; None if the network is not known to be a classifier."""
        return _joined(self._outputs)

    @property
    def features(self) -> Tensor | None:
        """Inputs of the last layer with weights, `(samples, features)`, mean over positions; None without one."""
        return _joined(self._features)


def _joined(parts: list[Tensor]) -> Tensor | None:
    if not parts or any(part.ndim != MATRIX for part in parts):
        return None
    return torch.cat(parts)
