"""The batches of a training run, in an order that depends only on the seed and the step.

No random state carries over between steps, so any step's batch can be built at any time. This is why an interrupted
run resumes exactly where it left off.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch user reads
from torch.utils import _pytree as pytree

from dfq_plugins.errors import DataError
from dfq_plugins.inputs import count, leaves, map_inputs
from dfq_plugins.statistics.augmentation import Augmentation, augment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.types import Inputs

FEWEST_SAMPLES = 2
"""One to train on, and one to select the best state with."""


@dataclass(frozen=True)
class Examples:
    """Inputs with their labels and teacher outputs, where known.

    Args:
        inputs: `(samples, *shape)`; by name if the network has several.
        labels: classes `(samples,)`, or class probabilities `(samples, classes)`; None without labels.
        answers: the teacher's outputs by name, each `(samples, ...)`; None if not computed yet.
        targets: what the user's task loss compares with: tensors `(samples, ...)`, possibly nested; None without.
    """

    inputs: Inputs
    labels: Tensor | None = None
    answers: Mapping[str, Tensor] | None = None
    targets: Any = None

    def __len__(self) -> int:
        return count(self.inputs)

    def take(self, indices: Tensor) -> Examples:
        """Return the examples at these indices."""
        return self.map(lambda part: part[indices])

    def map(self, change: Callable[[Tensor], Tensor]) -> Examples:
        """Return the examples with a function applied to each tensor."""
        parts = (self.inputs, self.labels, self.answers, self.targets)
        return Examples(*(pytree.tree_map_only(torch.Tensor, change, part) for part in parts))

    @property
    def digest(self) -> str:
        """SHA-256 of the values, in hexadecimal."""
        found = hashlib.sha256()
        for part in pytree.tree_leaves((self.inputs, self.labels, self.targets)):
            if part is not None:
                found.update(part.contiguous().numpy().tobytes())
        return found.hexdigest()


def rng_for(seed: int, *place: str | int) -> torch.Generator:
    """Return a random number generator for one purpose at one point of a run.

    >>> rng_for(0, "epoch", 1).initial_seed() == rng_for(0, "epoch", 2).initial_seed()
    False
    """
    text = "/".join(map(str, (seed, *place)))
    return torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) >> 1)


def split_held_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Split the examples by seed into those to train on and those held out to select the best state.

    Raises:
        DataError: there are fewer than two examples.
    """
    count = len(examples)
    if count < FEWEST_SAMPLES:
        raise DataError(
            f"Fine-tuning needs at least {FEWEST_SAMPLES} samples, one of them held out, got {count}. Synthesize more."
        )
    held_out = min(max(1, round(count * share)), count // 2)
    order = torch.randperm(count, generator=rng_for(seed, "held-out"))
    return examples.take(order[held_out:].sort().values), examples.take(order[:held_out].sort().values)


class TrainingBatches:
    """An endless supply of full batches, reshuffled for each epoch.

    Args:
        examples: training examples.
        options: batch size, seed, mixup and augmentation.
        num_classes: number of classes of the labels after mixup; None without labels.
        fill: padding value per channel, in the form of the inputs; None for zeros.
    """

    def __init__(
        self,
        examples: Examples,
        options: TrainingOptions,
        num_classes: int | None,
        fill: Any = None,
    ) -> None:
        self.examples, self._options = examples, options
        self._classes, self._fill = num_classes, fill
        self._orders: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """Return the indices of a step's examples, `(batch,)`."""
        size, count = self._options.batch_size, len(self.examples)
        positions = range(step * size, (step + 1) * size)
        epochs = range(positions.start // count, math.ceil(positions.stop / count))
        self._orders = {epoch: self._orders.get(epoch, self._order(epoch)) for epoch in epochs}
        joined = torch.cat([self._orders[epoch] for epoch in epochs])
        start = positions.start - epochs.start * count
        return joined[start : start + size]

    def batch(self, step: int) -> Examples:
        """Return the batch for a step, with mixup and augmentation applied as configured."""
        return presented(self.examples.take(self.indices(step)), self._options, step, self._classes, self._fill)

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.examples), generator=rng_for(self._options.seed, "epoch", epoch))


def presented(
    examples: Examples,
    options: TrainingOptions,
    step: int,
    num_classes: int | None,
    fill: Any = None,
) -> Examples:
    """Return the examples for a step, with mixup and augmentation as configured; `padding` also turns on flipping."""
    if not options.augments:
        return examples
    rng = rng_for(options.seed, "augment", step)
    mixed = mix_up(examples, options.mixup, num_classes, rng) if options.mixup else examples
    padding = options.padding or 0
    shown = Augmentation(options.jitter, options.flip or padding > 0, options.crop, padding)
    fills = map_inputs(lambda _: None, mixed.inputs) if fill is None else fill

    def augmented(tensor: Tensor, level: tuple[float, ...] | None) -> Tensor:
        return augment(tensor, shown, rng, level)

    return Examples(map_inputs(augmented, mixed.inputs, fills), mixed.labels)


def mix_up(examples: Examples, alpha: float, num_classes: int | None, rng: torch.Generator) -> Examples:
    """Return each example mixed with another, with one weight from Beta(alpha, alpha) for the whole batch.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2.

    >>> mixed = mix_up(Examples(torch.tensor([[0.0], [1.0]])), 1.0, None, torch.Generator().manual_seed(0))
    >>> round(mixed.inputs.sum().item(), 4)
    1.0
    """
    share = _beta(alpha, rng)
    partner = torch.randperm(len(examples), generator=rng)
    inputs = map_inputs(lambda tensor: share * tensor + (1 - share) * tensor[partner], examples.inputs)
    if examples.labels is None or num_classes is None:
        return Examples(inputs)
    shares = F.one_hot(examples.labels, num_classes).to(leaves(inputs)[0].dtype)
    return Examples(inputs, share * shares + (1 - share) * shares[partner])


def _beta(alpha: float, rng: torch.Generator) -> float:
    """Return a sample from Beta(alpha, alpha), computed from two gamma samples."""
    shape = torch.tensor([alpha, alpha], dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=rng).tolist()  # noqa: SLF001  public draws take no generator
    return float(first / (first + second)) if first + second > 0 else 0.5
