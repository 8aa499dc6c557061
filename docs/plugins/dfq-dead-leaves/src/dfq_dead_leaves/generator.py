"""Dead leaves: discs of random place, size and color that cover each other."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dfq_dead_leaves.plugin import DeadLeavesOptions
from dfq_plugins.errors import UsageError
from dfq_plugins.model_state import device_of
from dfq_plugins.types import Batch, DataGenerator, InputSpec, ProgressEvent


class DeadLeaves(DataGenerator):
    def __init__(self, options: DeadLeavesOptions) -> None:
        self.options = options

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        if len(spec.shape) != 3:
            raise UsageError(f"Dead leaves are images (channels, height, width), got the input shape {spec.shape}.")
        if spec.num_classes is None and self.options.candidates > 1:
            raise UsageError("candidates > 1 needs a classifier, to compare its confidence. Leave candidates at 1.")

    def generate(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
    ) -> Iterator[Batch]:
        done = 0
        while done < num_samples:
            size = min(batch_size, num_samples - done)
            drawn = [draw(spec, size, self.options.leaves, rng) for _ in range(self.options.candidates)]
            yield Batch(drawn[0] if len(drawn) == 1 else most_confident(model, torch.stack(drawn)))
            done += size
            report(ProgressEvent("synthesize", done, num_samples))


def draw(spec: InputSpec, count: int, leaves: int, rng: torch.Generator) -> Tensor:
    """Return images `(count, channels, height, width)` in network units, inside their valid range."""
    channels, height, width = spec.shape
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    images = torch.rand(count, channels, 1, 1, generator=rng).expand(count, *spec.shape)
    smallest, largest = 1.0, max(height, width) / 2
    for _ in range(leaves):
        row, column, chance = torch.rand(3, count, 1, 1, generator=rng)
        # Radii with a density of radius**-3: the picture looks the same at every scale, like natural images.
        radius = smallest / (1 - chance * (1 - (smallest / largest) ** 2)).sqrt()
        covered = (rows - row * height) ** 2 + (columns - column * width) ** 2 <= radius**2  # (count, height, width)
        color = torch.rand(count, channels, 1, 1, generator=rng)
        images = torch.where(covered.unsqueeze(1), color, images)
    low, high = spec.bounds or ((-2.0,) * channels, (2.0,) * channels)  # normalized data rarely goes further
    low, high = torch.tensor(low).view(-1, 1, 1), torch.tensor(high).view(-1, 1, 1)
    return low + (high - low) * images


@torch.no_grad()  # here, not in generate(), where it would also apply to the caller between two batches
def most_confident(model: nn.Module, candidates: Tensor) -> Tensor:
    """From each image's candidates `(candidates, count, ...)`, return the one with the highest class probability."""
    device = device_of(model)
    confidence = torch.stack([model(images.to(device)).softmax(1).amax(1).cpu() for images in candidates])
    best = confidence.argmax(0)
    return candidates[best, torch.arange(len(best))]
