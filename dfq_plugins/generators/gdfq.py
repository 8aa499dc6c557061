"""Images of given classes, from a network that learns only from the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from dfq_plugins.generators.inversion import balanced_labels, even_split
from dfq_plugins.generators.network import NetworkGenerator
from dfq_plugins.network.outputs import require_logits
from dfq_plugins.synthesis.terms import class_cross_entropy
from dfq_plugins.types import Batch, DataGenerator, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from dfq_plugins.generators.options import GdfqOptions
    from dfq_plugins.types import InputSpec, TimeBudget


class GdfqGenerator(NetworkGenerator, DataGenerator):
    """Learns to make images that the teacher assigns to the target class and that match the stored statistics.

    `class_weight * CE(T(G(z | y)), y) + batch_norm_weight * BNS`. It trains alone first, then alongside the student.
    Source: Xu et al. 2020, "Generative Low-bitwidth Data Free Quantization" (GDFQ), section 3.
    """

    options: GdfqOptions
    conditional = True

    def __init__(self, options: GdfqOptions) -> None:
        super().__init__(options)
        self._trained: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()

    def loss(self, images: Tensor, labels: Tensor, student: nn.Module | None) -> Tensor:  # noqa: ARG002  does not depend on the student
        """Return the weighted sum of the target classes' cross-entropy and the statistics' divergence."""
        answers, divergence = self.teacher.answer_as_trained(images, self.rng)
        loss = self.options.batch_norm_weight * divergence
        return loss + self.options.class_weight * class_cross_entropy(
            require_logits(answers, self.spec.num_classes), labels
        )

    def generate(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
        budget: TimeBudget | None = None,  # noqa: ARG002  does not support a budget
    ) -> Iterator[Batch]:
        """Yield exactly `num_samples` images with their classes; the network is trained once for all shards.

        Raises:
            UsageError: the inputs are not images, or the network is not a classifier.
            ModelError: statistics are to be matched, but the network has none.
            DivergedError: the loss is not finite.
        """
        self._pretrain(model, spec, report)
        self.rng = rng
        labels = balanced_labels(num_samples, spec.num_classes, rng)
        total = self.options.iterations
        for wanted in torch.split(labels, even_split(num_samples, batch_size)):
            with torch.no_grad():
                images = self.draw(wanted)
            yield Batch(images, wanted.to(images.device))
        report(ProgressEvent("synthesize", total, total))

    def _pretrain(self, model: nn.Module, spec: InputSpec, report: Callable[[ProgressEvent], None]) -> None:
        """Train the network against the teacher, or restore the one trained for an earlier shard.

        The network depends only on the model and the options, so shards are independent of each other.
        """
        self.begin(model, spec, torch.Generator().manual_seed(self.options.network_seed))
        total = self.options.iterations
        if model not in self._trained:
            for done in range(total):
                self.progress(done / total)
                self.step(self.options.step_samples, None)
                report(ProgressEvent("synthesize", done, total))
            self._trained[model] = self.network.state_dict()
        self.network.load_state_dict(self._trained[model])
        self.network.eval()
