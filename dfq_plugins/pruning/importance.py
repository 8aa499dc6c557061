"""Filter importance: how much the network's outputs would change without each filter. Needs inputs, but no labels."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.distillation.terms import output_scale
from dfq_plugins.model_state import hooked
from dfq_plugins.network.outputs import class_scores, sample_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dfq_plugins.pruning.graph import FilterGroup, Member

DRAWS = 4
"""Number of output directions per sample that are backpropagated."""


def answer_changes(
    model: nn.Module,
    groups: Sequence[FilterGroup],
    batches: Sequence[Tensor],
    temperature: float,
    seed: int,
    num_classes: int | None,
) -> dict[str, Tensor]:
    """Return by group how far the outputs move if each filter is replaced by its mean, `(filters,)`.

    To second order, this is half the mean over samples of `(sum over positions of (x - mean x) * d output / d x)**2`
    for the features x of a filter, as read by the next layers: the Fisher information of the removal, which is the
    expected KL divergence of the class probabilities at the temperature. Output directions are sampled, because the
    divergence has zero gradient at the teacher itself. For outputs without classes, it is the squared difference as a
    share of the output's variance.

    Source: Theis, Korshunova, Tejani and Huszar 2018 (arXiv 1801.05787), equation 6; the mean is subtracted because
    pruning restores it afterwards.

    Args:
        model: a network in eval mode, whose parameters require gradients.
        groups: groups of filters to rate.
        batches: inputs `(samples, *shape)`.
        temperature: divisor of the logits.
        seed: seed of the output directions.
        num_classes: number of classes; None or 0 if the network is not known to be a classifier.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = {group.name: torch.zeros(group.size) for group in groups}
    readers = sorted({member.name for group in groups for member in _readers(group)})
    with _read_by(model, readers) as features:
        for batch in batches:
            features.clear()
            outputs = sample_outputs(model(batch.clone()), len(batch))
            answers = [output for output in outputs.values() if output.requires_grad]
            read = [(name, feature) for name in readers for feature in features[name]]
            for _ in range(DRAWS):
                directions = [_direction(answer.detach(), temperature, generator, num_classes) for answer in answers]
                gradients = torch.autograd.grad(
                    answers, [feature for _, feature in read], directions, retain_graph=True
                )
                changes = _changes(model, read, gradients)
                for group in groups:
                    totals[group.name] += _of_group(group, changes).square().sum(0).cpu()
    count = 2 * DRAWS * sum(map(len, batches))
    return {name: total / count for name, total in totals.items()}


@contextmanager
def _read_by(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the inputs of the named layers within the block."""
    features: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str) -> Any:
        return lambda _, inputs: features[name].append(inputs[0])

    with hooked(model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names):
        yield features


def _direction(answers: Tensor, temperature: float, generator: torch.Generator, num_classes: int | None) -> Tensor:
    """Sample a direction whose covariance is the curvature of the distance between outputs."""
    scores = class_scores(answers, num_classes)
    if scores is None:
        values = answers[0].numel()
        drawn = torch.randn(answers.shape, generator=generator).to(answers)
        return drawn.div((values * output_scale(answers)).sqrt())
    probabilities = (scores / temperature).softmax(1)
    drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator).to(answers.device)
    directions = (torch.zeros_like(probabilities).scatter_(1, drawn, 1.0) - probabilities) / temperature
    places = len(scores) // len(answers)  # the distance is a mean over them
    return _as_output(directions, answers, scores.shape[1]).div(places**0.5)


def _as_output(rows: Tensor, output: Tensor, classes: int) -> Tensor:
    """Return rows `(rows, classes)` in the shape of the output that `class_scores` took them from."""
    axis = 1 if output.shape[1] == classes else -1
    moved: Tensor = rows.view(output.movedim(axis, -1).shape).movedim(-1, axis)
    return moved


def _changes(model: nn.Module, read: Sequence[tuple[str, Tensor]], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the first-order output change if each channel is replaced by its mean, by layer `(samples, channels)`."""
    changes: dict[str, Tensor] = {}
    for (name, feature), gradient in zip(read, gradients, strict=True):
        values, slopes = (_by_channel(model.get_submodule(name), part) for part in (feature.detach(), gradient))
        moved = ((values - values.mean((0, 2), keepdim=True)) * slopes).sum(2)
        changes[name] = changes[name] + moved if name in changes else moved
    return changes


def _by_channel(layer: nn.Module, feature: Tensor) -> Tensor:
    """Return a feature as `(samples, channels, positions)`."""
    channels_first = feature.movedim(-1, 1) if isinstance(layer, nn.Linear) else feature
    return channels_first.reshape(*channels_first.shape[:2], -1)


def _of_group(group: FilterGroup, changes: dict[str, Tensor]) -> Tensor:
    """Return the change from each filter of a group, summed over all layers that read it, `(samples, filters)`."""
    parts = [
        torch.stack([changes[member.name][:, list(places)].sum(1) for places in member.places], 1)
        for member in _readers(group)
    ]
    return torch.stack(parts).sum(0)


def _readers(group: FilterGroup) -> list[Member]:
    """Return the layers that read the group's filters, except depthwise layers, which only pass them on."""
    written = {member.name for member in group.members if member.outputs}
    return [member for member in group.members if not member.outputs and member.name not in written]
