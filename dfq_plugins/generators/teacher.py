"""The teacher of a generator network: its outputs, with gradients, and the divergence of its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.model_state import device_of
from dfq_plugins.network.outputs import sample_outputs
from dfq_plugins.network.precision import use_bfloat16
from dfq_plugins.statistics.augmentation import Augmentation, apply_maps, draw_maps, padding_of
from dfq_plugins.statistics.batch_norm import StatisticsHooks, require_reached_layers, stored_statistics
from dfq_plugins.statistics.requirements import require_batch_norm
from dfq_plugins.synthesis.gradients import require_gradients

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.generators.options import NetworkOptions
    from dfq_plugins.types import InputSpec


class ObservedTeacher:
    """A frozen network that is evaluated on generated images.

    Args:
        model: the network, in eval mode; hooks are attached only while it runs.
        spec: the specification of the images.
        options: whether to match BatchNorm statistics, the divergence, the padding, and the precision.

    Raises:
        ModelError: statistics are to be matched, but a forward pass reaches no trained statistics, or no gradient
            reaches the inputs.
    """

    def __init__(self, model: nn.Module, spec: InputSpec, options: NetworkOptions) -> None:
        self.model, self.device = model, device_of(model)
        self._spec, self._half = spec, use_bfloat16(options.precision, self.device)
        self._divergence = options.divergence
        self.matches = options.batch_norm_weight > 0
        padding = padding_of(spec) if options.padding is None else options.padding
        self._augmentation = Augmentation(flip=padding > 0, padding=padding)
        self._fill = torch.tensor(spec.pad_value, device=self.device)
        if self.matches:
            require_batch_norm(model)
        require_gradients(model, spec, statistics=self.matches)
        if self.matches:
            self._names = require_reached_layers(model, spec)
            self._stored = stored_statistics(model, spec, self._names)

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """Return the network's outputs by name, each `(batch, ...)`, for images `(batch, *shape)`, in float32."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half):
            outputs = sample_outputs(self.model(images.clone()), len(images))  # the network may write into its input
        return {name: output.float() for name, output in outputs.items()}

    def answer_as_trained(self, images: Tensor, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Augment the images as in training, with pad-and-crop; return the outputs and the BatchNorm divergence.

        The divergence, a mean over channels and then over layers, is 0 if no statistics are matched.
        """
        maps = draw_maps(self._augmentation, tuple(images.shape), rng, images.device)
        augmented = apply_maps(images, maps, self._fill)
        if not self.matches:
            return self.answer(augmented), images.new_zeros(())
        with StatisticsHooks(self.model, self._spec, self._names) as hooks:
            outputs = self.answer(augmented)
            found = hooks.collect(augmented)
        distance = self._stored.divergence(found.mean, found.var, self._divergence)
        return outputs, (self._stored.weight * distance).sum()
