"""The descending order against numpy's stable sort."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.ops.order import descending

VALUES = np.random.default_rng(0).normal(size=5000)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("digits", [1, 3, 17])
@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_the_same_as_a_stable_sort(dtype: type, digits: int, count: int) -> None:
    values = VALUES[:count].round(digits).astype(dtype)
    before = values.copy()
    found = descending(values)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.argsort(-values, kind="stable"))
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_tie_and_infinities_stand_at_the_ends(dtype: type) -> None:
    values = np.array([-0.0, 0.0, -np.inf, 1, -0.0, np.inf, -1], dtype)
    assert descending(values).tolist() == [5, 3, 0, 1, 4, 6, 2]
    assert sorted(descending(np.array([np.nan, 1, np.nan], dtype))) == [0, 1, 2]
