"""How much the network's answers would change without each filter, from any inputs: no labels, no trained scales."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.distillation.terms import are_logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dfq_plugins.pruning.graph import FilterGroup, Member

DRAWS = 4
"""Directions of the answers that are followed back, for each sample."""


def answer_changes(
    model: nn.Module, groups: Sequence[FilterGroup], batches: Sequence[Tensor], temperature: float, seed: int
) -> dict[str, Tensor]:
    """Return by group how far the answers move if each filter gives its mean and nothing else, `(filters,)`.

    To second order that is half the mean over the samples of `(sum over places of (x - mean x) * d answer / d x)**2`
    for the features x of a filter, as the layers behind it read them: the Fisher information of its removal, the
    expected KL divergence of the class probabilities at the temperature. The direction of the answers is drawn, since
    at the teacher itself the divergence has no gradient. Where the network is no classifier, answers count by their
    squared difference.

    Source: Theis, Korshunova, Tejani and Huszar 2018 (arXiv 1801.05787), equation 6; the mean is taken out because
    pruning gives it back.

    Args:
        model: in eval mode, with parameters that take gradients.
        groups: the filters.
        batches: inputs `(samples, *shape)`.
        temperature: what the logits are divided by.
        seed: of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = {group.name: torch.zeros(group.size) for group in groups}
    readers = sorted({member.name for group in groups for member in _readers(group)})
    with _read_by(model, readers) as features:
        for batch in batches:
            features.clear()
            answers = model(batch)
            read = [(name, feature) for name in readers for feature in features[name]]
            for _ in range(DRAWS):
                direction = _direction(answers.detach(), temperature, generator)
                gradients = torch.autograd.grad(answers, [feature for _, feature in read], direction, retain_graph=True)
                changes = _changes(model, read, gradients)
                for group in groups:
                    totals[group.name] += _of_group(group, changes).square().sum(0).cpu()
    count = 2 * DRAWS * sum(map(len, batches))
    return {name: total / count for name, total in totals.items()}


@contextmanager
def _read_by(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what enters the named layers within the block."""
    features: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str) -> Any:
        return lambda _, inputs: features[name].append(inputs[0])

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(hook(name))
            stack.callback(handle.remove)
        yield features


def _direction(answers: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw a direction whose covariance is the curvature of the distance between answers."""
    if not are_logits(answers):
        return torch.randn(answers.shape, generator=generator).to(answers)
    probabilities = (answers / temperature).softmax(1)
    drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator).to(answers.device)
    return (torch.zeros_like(probabilities).scatter_(1, drawn, 1.0) - probabilities) / temperature


def _changes(model: nn.Module, read: Sequence[tuple[str, Tensor]], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the first-order change of the answers if each channel gave its mean, by layer `(samples, channels)`."""
    changes: dict[str, Tensor] = {}
    for (name, feature), gradient in zip(read, gradients, strict=True):
        values, slopes = (_by_channel(model.get_submodule(name), part) for part in (feature.detach(), gradient))
        moved = ((values - values.mean((0, 2), keepdim=True)) * slopes).sum(2)
        changes[name] = changes[name] + moved if name in changes else moved
    return changes


def _by_channel(layer: nn.Module, feature: Tensor) -> Tensor:
    """Return a feature as `(samples, channels, places)`."""
    channels_first = feature.movedim(-1, 1) if isinstance(layer, nn.Linear) else feature
    return channels_first.reshape(*channels_first.shape[:2], -1)


def _of_group(group: FilterGroup, changes: dict[str, Tensor]) -> Tensor:
    """Return the change that each filter of a group makes in all layers that read it, `(samples, filters)`."""
    parts = [
        torch.stack([changes[member.name][:, list(places)].sum(1) for places in member.places], 1)
        for member in _readers(group)
    ]
    return torch.stack(parts).sum(0)


def _readers(group: FilterGroup) -> list[Member]:
    """Return where the filters leave the group; a depthwise layer only passes them on."""
    written = {member.name for member in group.members if member.outputs}
    return [member for member in group.members if not member.outputs and member.name not in written]
