"""The notices of Brevitas, and of what it calls, that speak to its own developers or concern parts not used here."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

NOTICES = (
    # Brevitas imports its own deprecated module.
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
