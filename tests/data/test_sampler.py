from __future__ import annotations

import numpy as np
import pytest

from detkit.data.sampler import EpochSampler, repeat_factors


def indices(sampler: EpochSampler, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [[index for _, index in slots] for slots in sampler.epoch(epoch, start)]


def test_evaluation_keeps_order_and_the_last_partial_batch() -> None:
    sampler = EpochSampler(7, batch=3)
    assert indices(sampler) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(sampler) == 3


def test_training_shuffles_by_seed_and_epoch_and_drops_the_rest() -> None:
    sampler = EpochSampler(10, batch=4, shuffle=True, seed=1)
    first = indices(sampler, 0)
    assert first == indices(EpochSampler(10, batch=4, shuffle=True, seed=1), 0)
    assert first != indices(sampler, 1)
    assert first != indices(EpochSampler(10, batch=4, shuffle=True, seed=2), 0)
    assert [len(row) for row in first] == [4, 4]
    assert len({i for row in first for i in row}) == 8


def test_a_set_smaller_than_a_batch_fills_it() -> None:
    rows = indices(EpochSampler(3, batch=8, shuffle=True))
    assert [len(row) for row in rows] == [8]
    assert set(rows[0]) == {0, 1, 2}


def test_an_epoch_goes_on_where_it_stopped() -> None:
    sampler = EpochSampler(20, batch=3, shuffle=True)
    assert indices(sampler, 5, start=2) == indices(sampler, 5)[2:]
    positions = [position for slots in sampler.epoch(5, 2) for position, _ in slots]
    np.testing.assert_array_equal(positions, np.arange(6, 18))


@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_what_one_would_do(shuffle: bool) -> None:
    one = indices(EpochSampler(21, batch=6, shuffle=shuffle))
    parts = [indices(EpochSampler(21, batch=3, shuffle=shuffle, rank=rank, world=2)) for rank in (0, 1)]
    parts = [part + [[]] * (len(one) - len(part)) for part in parts]
    assert [a + b for a, b in zip(*parts, strict=True)] == one
    for rank in (0, 1):
        assert len(EpochSampler(21, batch=3, shuffle=shuffle, rank=rank, world=2)) == sum(map(bool, parts[rank]))


def test_repeat_factors_by_hand() -> None:
    # Class 0 is in all four images, class 1 in one: f = 0.25, sqrt(1 / 0.25) = 2.
    labels = [np.array([0, 0]), np.array([0]), np.array([0]), np.array([0, 1])]
    np.testing.assert_allclose(repeat_factors(labels, 3, threshold=1.0), [1, 1, 1, 2])
    np.testing.assert_allclose(repeat_factors([np.zeros(0, int), np.array([2])], 3, 0.1), [1, 1])


def test_weights_set_how_often_a_image_is_drawn() -> None:
    weights = np.array([1.0] * 9 + [9.0])
    sampler = EpochSampler(10, batch=10, shuffle=True, weights=weights)
    drawn = np.concatenate([np.concatenate(indices(sampler, epoch)) for epoch in range(200)])
    counts = np.bincount(drawn, minlength=10) / 200
    np.testing.assert_allclose(counts, 10 * weights / weights.sum(), atol=0.12)
    per_epoch = [sum(row.count(9) for row in indices(sampler, epoch)) for epoch in range(20)]
    assert set(per_epoch) <= {5}


@pytest.mark.parametrize("values", [{"count": 0}, {"batch": 0}])
def test_senseless_values_are_errors(values: dict) -> None:
    with pytest.raises(ValueError, match="sampler"):
        EpochSampler(**{"count": 5, "batch": 2, **values})
