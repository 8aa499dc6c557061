"""Silences, one by one and by their text, the notices of Brevitas and of what it calls.

They speak to Brevitas's own developers or concern parts that are not used here; everything else stays a warning.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOTICES: tuple[tuple[str, type[Warning]], ...] = (
    # Brevitas imports its own deprecated module.
    (r"brevitas\.fx is deprecated and will be removed in a future release", DeprecationWarning),
    # Hadamard rotations are for language models.
    (r"fast_hadamard_transform package not found", UserWarning),
    (r"pkg_resources is deprecated as an API", Warning),
    # Brevitas's tracer reads an attribute that torch renamed.
    (r"`treespec\.children_specs` is deprecated", FutureWarning),
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    (r"Named tensors and all their associated APIs are an experimental feature", UserWarning),
)


@contextmanager
def framework_notices_silenced() -> Iterator[None]:
    """Silence the known notices of Brevitas, and nothing else, within the block."""
    with warnings.catch_warnings():
        for message, category in _NOTICES:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield
