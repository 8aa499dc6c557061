"""Brevitas's global settings, restored after each use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

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
    """Let Brevitas's alignment of joins give up when it does not converge: each round settles at least one node."""
    former = quantize_impl.MAX_RESIDUAL_ITERS
    quantize_impl.MAX_RESIDUAL_ITERS = _ROUNDS_PER_NODE * len(graph.graph.nodes)
    try:
        yield
    finally:
        quantize_impl.MAX_RESIDUAL_ITERS = former


_ROUNDS_PER_NODE = 2
