"""Inception: inputs that the network is sure of, kept smooth by priors."""

from __future__ import annotations

from dfq_plugins.generators.base import InversionGenerator


class InceptionGenerator(InversionGenerator):
    """Raises the wanted class under a smoothness prior and random augmentation; works without BatchNorm.

    Source: Haroush et al. 2020, Inception scheme.
    """
