"""Loss terms between a student and its teacher: pure functions that return a scalar, 0 where both agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch user reads
from torch import Tensor

RIDGE = 1e-6
"""Ridge of the channel map, as a share of the mean square, so that the solution exists even with identical channels."""


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student's class probabilities from the teacher's, in nats, batch mean.

    `T^2 * KL(softmax(t / T) || softmax(s / T))`; the factor keeps the gradient scale the same at all temperatures.
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.

    Args:
        student: logits `(batch, classes)`.
        teacher: logits `(batch, classes)`.
        temperature: divisor of both logits.

    >>> logits = torch.tensor([[2.0, -1.0]])
    >>> kl_divergence(logits, logits, 4.0).item()
    0.0
    >>> certain, undecided = torch.tensor([[100.0, 0.0]]), torch.zeros(1, 2)
    >>> round(kl_divergence(undecided, certain).item(), 4)  # one bit
    0.6931
    """
    log_student, log_teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * temperature**2


def kl_of_each(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the divergence of `kl_divergence` for each row, `(batch,)`.

    >>> kl_of_each(torch.zeros(3, 2), torch.zeros(3, 2)).tolist()
    [0.0, 0.0, 0.0]
    """
    log_student, log_teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(1) * temperature**2


def symmetrized_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum of the KL divergences in both directions. Source: Zhu et al. 2020 (arXiv 2010.07334), for pruning.

    >>> first, second = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, 1.0]])
    >>> symmetrized_kl(first, second).item() == symmetrized_kl(second, first).item()
    True
    """
    return kl_divergence(student, teacher, temperature) + kl_divergence(teacher, student, temperature)


def logit_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the outputs, of any shape.

    >>> logit_difference(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])).item()
    2.0
    """
    return F.mse_loss(student, teacher)


def output_scale(teacher: Tensor) -> Tensor:
    """Return the variance of a teacher's output over all its values: the unit of its distances, a scalar.

    It is at least a small share of the mean square, since a batch may hold a single value, or a constant.

    >>> output_scale(torch.tensor([[1.0, 3.0], [1.0, 3.0]])).item()
    1.0
    """
    smallest = 1e-12
    return teacher.var(correction=0).clamp_min(RIDGE * teacher.square().mean()).clamp_min(smallest)


def scaled_difference(student: Tensor, teacher: Tensor, scale: Tensor | None = None) -> Tensor:
    """Mean squared difference of the outputs as a share of the teacher's variance, of any shape.

    Args:
        student: the student's output.
        teacher: the teacher's.
        scale: the variance; None takes that of `teacher`.

    >>> scaled_difference(torch.tensor([0.0, 2.0]), torch.tensor([2.0, 6.0])).item()
    2.5
    """
    return F.mse_loss(student, teacher) / (output_scale(teacher) if scale is None else scale)


def hard_labels(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with labels, in nats.

    Args:
        student: logits `(batch, classes)`.
        labels: classes `(batch,)`, or class probabilities `(batch, classes)` after mixup.

    >>> round(hard_labels(torch.zeros(1, 4), torch.tensor([2])).item(), 4)
    1.3863
    """
    return F.cross_entropy(student, labels)


def feature_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two features of equal shape, as a share of the teacher's mean square.

    >>> feature_difference(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 2.0]])).item()
    0.5
    """
    smallest = 1e-12  # an all-zero feature has no scale to normalize by
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(smallest)


def in_channels_of(student: Tensor, teacher: Tensor) -> Tensor:
    """Map a student's feature to the teacher's channels with the best affine map over channels.

    The map is the least-squares fit over all samples and positions, recomputed for each batch. It is treated as a
    constant: at its optimum, the gradient of the loss with respect to the map is zero.

    Args:
        student: `(batch, channels, *spatial)`.
        teacher: `(batch, other channels, *spatial)`.

    >>> narrow = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0))
    >>> wide = torch.stack([narrow[:, 0], narrow[:, 1], narrow[:, 0] - 2 * narrow[:, 1] + 3], dim=1)
    >>> torch.allclose(in_channels_of(narrow, wide), wide, atol=1e-4)
    True
    """
    ours, theirs = (feature.transpose(0, 1).flatten(1) for feature in (student, teacher))
    ours = torch.cat([ours, torch.ones_like(ours[:1])])
    with torch.no_grad(), torch.autocast(ours.device.type, enabled=False):  # sums of squares need float32
        products = ours @ ours.T
        products += RIDGE * products.diagonal().mean() * torch.eye(len(products), device=products.device)
        solved = torch.linalg.solve(products, ours @ theirs.T)
    shape = (len(theirs), len(student), *student.shape[2:])
    mapped: Tensor = (solved.T @ ours).view(shape)
    return mapped.transpose(0, 1)


def attention_map(feature: Tensor) -> Tensor:
    """Return the normalized channel mean of squares of a feature `(batch, channels, *spatial)`, `(batch, positions)`.

    >>> round(attention_map(torch.tensor([[[3.0, 4.0], [3.0, 4.0]]])).norm().item(), 4)
    1.0
    """
    return F.normalize(feature.square().mean(1).flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance between two attention maps, mean over the batch: `|| f(s)/||f(s)|| - f(t)/||f(t)|| ||`.

    Here f is the channel mean of squares, so the scale of a feature has no effect. Source: Zhu et al. 2020 (arXiv
    2010.07334), equation of the term R_a.

    >>> feature = torch.tensor([[[1.0, 2.0]]])
    >>> round(attention_distance(3 * feature, feature).item(), 4)
    0.0
    """
    distances: Tensor = torch.linalg.vector_norm(attention_map(student) - attention_map(teacher), dim=1)
    return distances.mean()
