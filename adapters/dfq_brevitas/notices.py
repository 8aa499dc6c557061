"""Warnings from Brevitas and its dependencies that are meant for their developers or concern unused parts."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

NOTICES = (
    # Brevitas imports a deprecated module of its own package.
    Notice(r"brevitas\.fx is deprecated and will be removed in a future release", DeprecationWarning),
    # Hadamard rotations are for language models.
    Notice(r"fast_hadamard_transform package not found", UserWarning),
    Notice(r"pkg_resources is deprecated as an API"),
    # Brevitas's tracer reads an attribute that torch renamed.
    Notice(r"`treespec\.children_specs` is deprecated", FutureWarning),
    Notice(r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    Notice(r"Named tensors and all their associated APIs are an experimental feature", UserWarning),
)
"""Warnings that say nothing about the user's model."""
