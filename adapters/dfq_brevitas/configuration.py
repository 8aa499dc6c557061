"""Brevitas's global settings, restored after each use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dfq_brevitas.additions import is_addition
from dfq_brevitas.framework import brevitas_config, quantize_impl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfq_brevitas.framework import GraphModule


@contextmanager
def kept_configuration() -> Iterator[None]:
    """Restore the setting that Brevitas does not restore when it fails."""
    ignored = brevitas_config.IGNORE_MISSING_KEYS
    try:
        yield
    finally:
        brevitas_config.IGNORE_MISSING_KEYS = ignored


@contextmanager
def limited_rounds(graph: GraphModule) -> Iterator[None]:
    """Let Brevitas's alignment of joins give up when it does not converge: usually, each round settles one join."""
    former = quantize_impl.MAX_RESIDUAL_ITERS
    joins = sum(node.target is torch.cat or is_addition(node) for node in graph.graph.nodes)
    quantize_impl.MAX_RESIDUAL_ITERS = _ROUNDS_PER_JOIN * joins + _MORE_ROUNDS
    try:
        yield
    finally:
        quantize_impl.MAX_RESIDUAL_ITERS = former


_ROUNDS_PER_JOIN, _MORE_ROUNDS = 2, 10
