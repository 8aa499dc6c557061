"""The graph of a network's units, and the Fourier transform on it.

Vertices are the units of all layers, edges connect the units of consecutive layers, and an edge's weight measures the
joint activity of its two units. The eigenvectors of the weight matrix are the graph's waves: with `V` the matrix of
eigenvectors and `F = V^-1`, a vector of activations `a` has the Fourier coefficients `F a`. The weights are symmetric,
so `F = V^T`.

A graph of layers has many waves with eigenvalue 0: at least as many as its odd layers have more units than its even
ones. Any basis of their space consists of eigenvectors. We use the principal axes of the data: their few strongest
coefficients capture the most, and they are the same on every machine.

Source: Lopes, Fenu and Starner 2017, spectral methods; Sandryhaila and Moura 2013 for the transform.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

NULL = 1e-9
"""Eigenvalues below this fraction of the largest count as 0: rounding makes their eigenvectors arbitrary."""


def layer_places(sizes: Sequence[int]) -> list[slice]:
    """Return the position of each layer's units in the vector of all units.

    >>> layer_places([2, 3])
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]


def consecutive_edges(weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the weight matrix `(units, units)` with only the edges between consecutive layers.

    >>> consecutive_edges(torch.ones(3, 3), [1, 1, 1])
    tensor([[0., 1., 0.],
            [1., 0., 1.],
            [0., 1., 0.]])
    """
    adjacency = torch.zeros_like(weights)
    for first, second in pairwise(layer_places(sizes)):
        adjacency[first, second] = weights[first, second]
        adjacency[second, first] = weights[first, second].T
    return adjacency


def fourier_basis(adjacency: Tensor, second_moment: Tensor) -> Tensor:
    """Return the orthonormal eigenvectors of a symmetric weight matrix as columns `(units, units)`.

    The largest entry of each is positive, so that the result does not depend on the solver's choice of sign.

    Args:
        adjacency: weights of the edges, `(units, units)`.
        second_moment: mean outer product of the activations; its principal axes are the waves with eigenvalue 0.
    """
    values, vectors = torch.linalg.eigh(adjacency)
    null = values.abs() <= NULL * values.abs().max()
    if bool(null.any()):
        flat = vectors[:, null]
        vectors[:, null] = flat @ torch.linalg.eigh(flat.T @ second_moment @ flat).eigenvectors
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    flipped: Tensor = vectors * largest.sign()
    return flipped


def strongest_waves(adjacency: Tensor, second_moment: Tensor, share: float) -> Tensor:
    """Return the waves with the largest coefficients in the data, as columns `(units, kept)`, the strongest first.

    The magnitude of a coefficient is its root mean square over the data.

    Args:
        adjacency: weights of the edges, `(units, units)`.
        second_moment: mean outer product of the activations, `(units, units)`.
        share: number of waves to keep, as a fraction of the units; rounded up.
    """
    basis = fourier_basis(adjacency, second_moment)
    power = (basis * (second_moment @ basis)).sum(0)
    kept = torch.topk(power, math.ceil(share * len(basis))).indices
    return basis[:, kept]
