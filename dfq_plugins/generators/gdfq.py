"""Images of given classes, by a network that learns from the teacher alone."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from dfq_plugins.generators.inversion import balanced_labels, even_split
from dfq_plugins.generators.network import NetworkGenerator
from dfq_plugins.synthesis.terms import class_cross_entropy
from dfq_plugins.types import Batch, DataGenerator, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from dfq_plugins.generators.options import GdfqOptions
    from dfq_plugins.types import InputSpec, TimeBudget


class GdfqGenerator(NetworkGenerator, DataGenerator):
    """Learns to make images that the teacher sees the wanted class in, and whose statistics are the stored ones.

    `class_weight * CE(T(G(z | y)), y) + batch_norm_weight * BNS`. It learns for itself first, and then beside the
    student. Source: Xu et al. 2020, "Generative Low-bitwidth Data Free Quantization" (GDFQ), section 3.
    """

    options: GdfqOptions
    conditional = True

    def __init__(self, options: GdfqOptions) -> None:
        super().__init__(options)
        self._trained: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()

    def loss(self, images: Tensor, labels: Tensor, student: nn.Module | None) -> Tensor:  # noqa: ARG002  not asked
        """Return the cross-entropy of the wanted classes and the divergence of the statistics, weighted."""
        answers, divergence = self.teacher.answer_as_trained(images, self.rng)
        loss = self.options.batch_norm_weight * divergence
        return loss + self.options.class_weight * class_cross_entropy(answers, labels)

    def generate(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
        budget: TimeBudget | None = None,  # noqa: ARG002  it keeps to no time
    ) -> Iterator[Batch]:
        """Yield exactly `num_samples` images with their classes; the network is trained once for all shards.

        Raises:
            UsageError: inputs that are no images, or no classifier.
            ModelError: statistics are to be matched, and the network has none.
            DivergedError: the loss is not finite.
        """
        self._learn_alone(model, spec, report)
        self.rng = rng
        labels = balanced_labels(num_samples, spec.num_classes, rng)
        total = self.options.iterations
        for wanted in torch.split(labels, even_split(num_samples, batch_size)):
            with torch.no_grad():
                images = self.draw(wanted)
            yield Batch(images, wanted.to(images.device))
        report(ProgressEvent("synthesize", total, total))

    def _learn_alone(self, model: nn.Module, spec: InputSpec, report: Callable[[ProgressEvent], None]) -> None:
        """Train the network against the teacher, or bring back what an earlier shard left.

        It depends on the model and the options alone: each shard stands by itself.
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
