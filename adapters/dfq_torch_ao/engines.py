"""The engine that packs and runs int8 weights: chosen by an option, active only while needed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import UsageError
from dfq_shared.processor import saturates_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfq_torch_ao.options import TorchAoOptions

_KNOWN_ENGINES = ("x86", "onednn", "fbgemm", "qnnpack")


def resolve_engine(requested: str) -> str:
    """Return the engine to use: the requested one, or the process's current engine for `auto`.

    Raises:
        UsageError: this build of torch has no kernels for the engine.
    """
    supported = [engine for engine in torch.backends.quantized.supported_engines if engine in _KNOWN_ENGINES]
    engine = torch.backends.quantized.engine if requested == "auto" else requested
    if engine not in supported:
        raise UsageError(
            f"The quantized engine must be one that this build of torch has, got {engine!r}. "
            f"Set engine= to one of: {', '.join(sorted(supported))}."
        )
    return str(engine)


@contextmanager
def active_engine(engine: str) -> Iterator[None]:
    """Make `engine` the process's quantized engine within the block, and restore the previous one afterwards."""
    former = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = former


def reduces_range(options: TorchAoOptions, engine: str) -> bool:
    """Return whether 8-bit activations stay within 0..127.

    Without VNNI, the kernels of FBGEMM and oneDNN add pairs of 8-bit products in 16 bits: 2 * 255 * 127 does not fit,
    2 * 127 * 127 does. torch.ao halves the range for x86 and fbgemm on every processor, so that a converted model
    computes the same on all of them.
    """
    if options.reduce_range is not None:
        return options.reduce_range
    return engine in ("x86", "fbgemm") or (engine == "onednn" and saturates_pairs())
