"""The percentile of activations: Brevitas's own value, found among the largest."""

from __future__ import annotations

import pytest
import torch

from dfq_brevitas.framework import AbsPercentile
from dfq_brevitas.percentile import TailPercentile, kth_smallest


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 99.99, 99.999, 100.0])
@pytest.mark.parametrize("count", [5, 63, 1000, 100_003])
def test_the_value_is_that_of_brevitas(percentile: float, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    values[::3] = values[0]  # ties
    ours, theirs = (kind(percentile, None)(values) for kind in (TailPercentile, AbsPercentile))
    assert ours == theirs


def test_along_a_dimension_it_is_brevitas_own() -> None:
    values = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    ours, theirs = (kind(99.0, 1, keepdim=True)(values) for kind in (TailPercentile, AbsPercentile))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("lost", [1, 100, 10_000])
def test_missing_values_count_as_the_largest(lost: int) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    values[:lost] = torch.nan
    for rank in (9_000, 9_950, 10_000):
        torch.testing.assert_close(
            kth_smallest(values, rank), values.kthvalue(rank).values, rtol=0, atol=0, equal_nan=True
        )
