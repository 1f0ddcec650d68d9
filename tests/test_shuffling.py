"""The order of windows: the same as ever for most texts, and computed for very large ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charwright.data import shuffling
from charwright.data.sequences import Windows, epoch_generator
from charwright.data.shuffling import KEPT_UP_TO, ROUNDS, Permutation, shuffled

keys = st.lists(st.integers(0, 2**64 - 1), min_size=ROUNDS, max_size=ROUNDS)


@given(st.integers(1, 5000), keys)
def test_each_number_occurs_once(count: int, keys: list[int]) -> None:
    assert sorted(Permutation(count, keys)[:].tolist()) == list(range(count))


@given(st.integers(1, 1 << 40), keys, st.data())
def test_a_part_is_that_of_the_whole(count: int, keys: list[int], data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, count))
    found = Permutation(count, keys)[begin : begin + 9]
    assert found.dtype == np.int64
    assert len(found) == min(9, count - begin)
    assert all(0 <= number < count for number in found.tolist())
    for at, number in enumerate(found.tolist(), begin):
        assert Permutation(count, keys)[at : at + 1].tolist() == [number]


def test_the_order_looks_random() -> None:
    """Means and correlations over 20 orders, with bounds of more than five standard errors."""
    count = 3000
    for seed in range(20):
        order = shuffled_anyway(count, seed)
        scaled = (order - (count - 1) / 2) / (count / np.sqrt(12))
        assert abs(np.corrcoef(scaled, np.arange(count))[0, 1]) < 0.1
        for gap in (1, 2, 32, 1024):
            assert abs(np.mean(scaled[:-gap] * scaled[gap:])) < 0.2
        assert 0.5 < np.mean(np.abs(np.diff(order))) / (count / 3) < 1.5
    fixed = [int((shuffled_anyway(count, seed) == np.arange(count)).sum()) for seed in range(200)]
    assert 0.6 < np.mean(fixed) < 1.4, "one number stays in its place on average"


def shuffled_anyway(count: int, seed: int) -> np.ndarray:
    drawn = epoch_generator(seed, 1).integers(1 << 64, size=ROUNDS, dtype=np.uint64).tolist()
    return Permutation(count, drawn)[:]


def test_most_texts_have_numpys_order() -> None:
    found = shuffled(10_000, epoch_generator(5, 3))
    assert isinstance(found, np.ndarray)
    assert (found == epoch_generator(5, 3).permutation(10_000)).all()
    assert isinstance(shuffled(KEPT_UP_TO, epoch_generator(5, 3)), np.ndarray)
    large = shuffled(KEPT_UP_TO + 1, epoch_generator(5, 3))
    assert isinstance(large, Permutation)
    assert (large[:99] != shuffled(KEPT_UP_TO + 1, epoch_generator(5, 4))[:99]).any()


def test_windows_in_a_computed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffling, "KEPT_UP_TO", 1)
    dataset = Windows(np.arange(1000, dtype=np.int32), 6, 5, seed=2)
    whole = list(dataset.batches(1))
    begins = np.concatenate([inputs[0] for inputs, _ in whole])
    assert len(set(begins.tolist())) == len(begins) == 1000 // 7 // 5 * 5
    assert (begins % 7 == 0).all()
    assert (begins != np.sort(begins)).any()
    for (inputs, _), (again, _) in zip(whole[9:], dataset.batches(1, 9), strict=True):
        assert (inputs == again).all()
    assert (next(iter(dataset.batches(2)))[0] != whole[0][0]).any()
