"""BatchNorm statistics and class at once: the paper's combination."""

from __future__ import annotations

from dfq_plugins.generators.base import InversionGenerator


class BatchNormInceptionGenerator(InversionGenerator):
    """Matches the stored statistics while raising the wanted class, so that the inputs carry labels.

    Source: Haroush et al. 2020, BNS+I scheme.
    """
