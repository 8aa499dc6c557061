"""The graph of a network's units, and the Fourier transform on it.

Vertices are the units of all layers, edges join the units of consecutive layers, and an edge weighs what its two units
do together. The eigenvectors of the weight matrix are the graph's waves: with `V` the matrix of eigenvectors and
`F = V^-1`, a vector of activations `a` has the Fourier coefficients `F a`. The weights are symmetric, so `F = V^T`.

A graph of layers has many waves of eigenvalue 0, as many at least as its odd layers have units more than its even ones.
Any basis of these is one of eigenvectors. The one that is taken is that of the data's principal axes: its few strongest
coefficients hold the most, and it is the same on every machine.

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
"""Eigenvalues of less than this share of the largest count as 0: rounding leaves them no direction of their own."""


def layer_places(sizes: Sequence[int]) -> list[slice]:
    """Return where each layer's units lie in the vector of all.

    >>> layer_places([2, 3])
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]


def consecutive_edges(weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the weight matrix `(units, units)` with the edges between consecutive layers alone.

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
        second_moment: mean outer product of the activations; its principal axes are the waves of eigenvalue 0.
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
        share: how many waves to keep, as a share of the units; rounded up.
    """
    basis = fourier_basis(adjacency, second_moment)
    power = (basis * (second_moment @ basis)).sum(0)
    kept = torch.topk(power, math.ceil(share * len(basis))).indices
    return basis[:, kept]
