"""BatchNorm-statistics inversion: inputs whose statistics are those that training stored."""

from __future__ import annotations

from dfq_plugins.generators.base import InversionGenerator


class BatchNormGenerator(InversionGenerator):
    """Matches every BatchNorm layer's stored mean and variance at its input, and the input's own where known.

    Source: Haroush et al. 2020, BN-Statistics (BNS) scheme.
    """
