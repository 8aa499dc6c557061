"""The teacher as generator networks look at it: its answers, with gradients, and how far its statistics are off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.model_state import device_of
from dfq_plugins.network.precision import use_bfloat16
from dfq_plugins.statistics.augmentation import Augmentation, apply_maps, draw_maps, padding_of
from dfq_plugins.statistics.batch_norm import StatisticsHooks, require_reached_layers, stored_statistics
from dfq_plugins.statistics.divergences import DIVERGENCES
from dfq_plugins.statistics.requirements import require_batch_norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.generators.options import NetworkOptions
    from dfq_plugins.types import InputSpec


class ObservedTeacher:
    """A frozen network that is run on generated images.

    Args:
        model: the network, in eval mode; hooks are on it only while it runs.
        spec: the images.
        options: whether BatchNorm statistics are matched, by which divergence, over which border; precision.

    Raises:
        ModelError: statistics are to be matched, and the network has none that are trained and reached.
    """

    def __init__(self, model: nn.Module, spec: InputSpec, options: NetworkOptions) -> None:
        self.model, self.device = model, device_of(model)
        self._spec, self._half = spec, use_bfloat16(options.precision, self.device)
        self._distance = DIVERGENCES[options.divergence]
        self.matches = options.batch_norm_weight > 0
        border = padding_of(spec) if options.padding is None else options.padding
        self._shown = Augmentation(flip=border > 0, padding=border)
        self._fill = torch.tensor(spec.pad_value, device=self.device)
        if self.matches:
            require_batch_norm(model)
            self._names = require_reached_layers(model, spec)
            self._stored = stored_statistics(model, spec, self._names)

    def answer(self, images: Tensor) -> Tensor:
        """Return the network's outputs `(batch, ...)` to images `(batch, *shape)`, in float32."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half):
            outputs: Tensor = self.model(images)
        return outputs.float()

    def answer_as_trained(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Show the images as training did, shifted over a border; return the outputs and the BatchNorm divergence.

        The divergence, a mean over channels and then over layers, is 0 where no statistics are matched.
        """
        maps = draw_maps(self._shown, tuple(images.shape), rng, images.device)
        shown = apply_maps(images, maps, self._fill)
        if not self.matches:
            return self.answer(shown), images.new_zeros(())
        with StatisticsHooks(self.model, self._spec, self._names) as hooks:
            outputs = self.answer(shown)
            found = hooks.collect(shown)
        stored = self._stored
        distance = self._distance(stored.mean, stored.var + stored.eps, found.mean, found.var + stored.eps)
        return outputs, (stored.weight * distance).sum()
