"""Draws: temperature, top-k, top-p, masks, and random streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from charwright.generation.sampling import draw, probabilities, uniforms

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))
TEMPERATURES = st.floats(0.05, 100)


def softmax(logits: np.ndarray) -> np.ndarray:
    """The definition, without any of the care that the code takes."""
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum()


@given(LOGITS, TEMPERATURES)
def test_probabilities_are_the_softmax(logits: np.ndarray, temperature: float) -> None:
    assume(np.abs(logits / temperature).max() < 300)
    np.testing.assert_allclose(probabilities(logits, temperature), softmax(logits / temperature), rtol=1e-4, atol=1e-12)


def test_temperature_zero_takes_the_likeliest_and_the_first_among_equals() -> None:
    np.testing.assert_array_equal(probabilities(np.array([0.0, 3.0, 1.0, 3.0]), 0), [0, 1, 0, 0])


def test_temperature_zero_minds_the_mask() -> None:
    masked = np.array([False, True, False])
    np.testing.assert_array_equal(probabilities(np.array([0.0, 3.0, 1.0]), 0, masked=masked), [0, 0, 1])


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-10, 1e-3])
def test_a_tiny_temperature_does_not_overflow(temperature: float) -> None:
    np.testing.assert_array_equal(probabilities(np.array([-500.0, 30.0, 29.0, 3e38]), temperature), [0, 0, 0, 1])


def test_a_tiny_temperature_shares_among_equals() -> None:
    np.testing.assert_array_equal(probabilities(np.array([2.0, 1.0, 2.0]), 5e-324), [0.5, 0, 0.5])


def test_a_high_temperature_levels() -> None:
    hot = probabilities(np.array([0.0, 1.0, 2.0]), 100)
    assert hot.max() - hot.min() < 0.01
    assert hot[2] > hot[1] > hot[0]


@given(LOGITS, st.integers(1, 50), TEMPERATURES)
def test_top_k_keeps_the_k_likeliest(logits: np.ndarray, k: int, temperature: float) -> None:
    whole, cut = probabilities(logits, temperature), probabilities(logits, temperature, top_k=k)
    kept = np.flatnonzero(cut)
    assert len(kept) == min(k, np.count_nonzero(whole))
    assert cut.sum() == pytest.approx(1)
    np.testing.assert_allclose(cut[kept], whole[kept] / whole[kept].sum(), rtol=1e-9)
    left_out = np.delete(whole, kept)
    assert left_out.max(initial=0) <= whole[kept].min()


@given(LOGITS, st.floats(0.01, 1), TEMPERATURES)
def test_top_p_keeps_the_fewest_that_have_the_mass(logits: np.ndarray, p: float, temperature: float) -> None:
    whole, cut = probabilities(logits, temperature), probabilities(logits, temperature, top_p=p)
    kept = np.flatnonzero(cut)
    mass = whole[kept].sum()
    assert mass >= p - 1e-9
    assert cut.sum() == pytest.approx(1)
    np.testing.assert_allclose(cut[kept], whole[kept] / mass, rtol=1e-9)
    if p < 1:  # Without the least likely of them, the mass would not be there.
        assert mass - whole[kept].min() < p + 1e-9
    assert np.delete(whole, kept).max(initial=0) <= whole[kept].min()


def test_top_p_is_of_what_top_k_left() -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    # Of the two likeliest the first has 4/7, which is more than a half.
    np.testing.assert_array_equal(probabilities(logits, top_k=2, top_p=0.5), [1, 0, 0, 0])
    np.testing.assert_allclose(probabilities(logits, top_p=0.5), [4 / 7, 3 / 7, 0, 0])


@given(LOGITS, st.data())
def test_masked_ids_have_no_chance(logits: np.ndarray, data: st.DataObject) -> None:
    masked = np.array(data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))))
    assume(not masked.all())
    temperature = data.draw(st.sampled_from([0, 1e-300, 0.5, 1, 100]))
    top_k = data.draw(st.none() | st.integers(1, 50))
    top_p = data.draw(st.none() | st.floats(0.01, 1))
    logits = logits.astype(data.draw(st.sampled_from([np.float32, np.float64])))
    before = logits.copy()
    chances = probabilities(logits, temperature, top_k, top_p, masked)
    assert chances[masked].sum() == 0
    assert chances.sum() == pytest.approx(1)
    np.testing.assert_array_equal(logits, before)
    for uniform in (0.0, 0.5, np.nextafter(1, 0)):
        assert not masked[draw(chances, uniform)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_a_draw_never_has_probability_zero(chances: list[float], uniform: float) -> None:
    array = np.array(chances)
    assume(array.sum() > 1e-300)
    assert array[draw(array, uniform)] > 0


def test_draws_lie_where_the_cumulative_probability_says() -> None:
    chances = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    drawn = [draw(chances, uniform) for uniform in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999)]
    assert drawn == [1, 1, 3, 3, 4, 4]


CHANCES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
DRAWS = 200_000


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    random = uniforms(seed=3, stream=0).random(DRAWS)
    drawn = [draw(CHANCES, uniform) for uniform in random.tolist()]
    return np.bincount(drawn, minlength=len(CHANCES))


def chi_square(counts: np.ndarray, chances: np.ndarray) -> float:
    expected = chances / chances.sum() * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


# With four degrees of freedom, chi-square passes 23.51 once in ten thousand times.
LIMIT = 23.51


def test_draws_match_the_probabilities(counts: np.ndarray) -> None:
    assert chi_square(counts, CHANCES) < LIMIT


@pytest.mark.parametrize("index", range(len(CHANCES)))
@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_probability_that_is_five_percent_off_would_be_seen(counts: np.ndarray, index: int, factor: float) -> None:
    wrong = CHANCES.copy()
    wrong[index] *= factor
    assert chi_square(counts, wrong) > LIMIT


def test_streams_can_be_made_again_and_differ() -> None:
    first = uniforms(7, 0).random(1000)
    np.testing.assert_array_equal(first, uniforms(7, 0).random(1000))
    others = [uniforms(7, 1), uniforms(8, 0), uniforms(0, 7), uniforms(2**63 - 1, 0), uniforms(7, 65535)]
    for other in others:
        numbers = other.random(1000)
        assert not np.any(first == numbers)
        assert abs(np.corrcoef(first, numbers)[0, 1]) < 0.15


def test_the_numbers_of_a_stream_are_part_of_the_format() -> None:
    """Philox's numbers for (seed 7, stream 1): other numbers would give other texts for the same seed."""
    found = uniforms(7, 1).random(3)
    np.testing.assert_array_equal(found, [0.8824668302545412, 0.3690383346754841, 0.5170696944527113])
