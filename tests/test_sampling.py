"""Draws: what the options do, whether the frequencies are right, and that C and numpy draw the same ids."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from charwright import kernels
from charwright.config import ModelConfig
from charwright.generation.engine import Engine
from charwright.generation.native_backend import native_sampler
from charwright.generation.portable_exp import exponential
from charwright.generation.repetition import penalized
from charwright.generation.sampling import Sampler, choose, probabilities, uniform
from charwright.generation.streams import Stream

NOTHING_YET = np.zeros(0, dtype=np.int32)


class NativeDraw:
    """The kernels' draw from one row of logits, again and again: each call takes the next random number."""

    def __init__(self, sampler: Sampler, logits: np.ndarray, ids: np.ndarray = NOTHING_YET, drawn: int = 0) -> None:
        loaded = kernels.load()
        if loaded is None:
            pytest.skip("the C kernels are not built here, or not wanted")
        self._kernels, self._sampler = loaded, native_sampler(sampler, drawn)
        self._logits, self._ids = np.ascontiguousarray(logits, dtype=np.float64), np.ascontiguousarray(ids, np.int32)
        self._scratch, self._mask = np.empty(loaded.draw_bytes(len(logits)), dtype=np.uint8), sampler.masked

    def __call__(self) -> int:
        return int(self.many(1)[0])

    def many(self, count: int) -> np.ndarray:
        arguments = (
            self._sampler, self._logits.ctypes.data, len(self._logits), self._ids.ctypes.data, len(self._ids),
            self._scratch.ctypes.data,
        )  # fmt: skip
        return np.array([self._kernels.draw(*arguments) for _ in range(count)])

    @property
    def drawn(self) -> int:
        return int(self._sampler.drawn)


# --- The statistics ---

DRAWS = 200_000
SHARES = np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.03, 0.02, 0.01, 0.006, 0.004])
LOGITS = np.log(SHARES) + 3  # what is added to all of them means nothing
MASK = np.isin(np.arange(12), [1, 5, 11])

# The passage 4 2 7 9 1 3 8 6 0 5 stands at the end. Before, id 2 came after 8 of its characters, id 0 after 10 and
# again after 9, id 5 after 7, which is too few to count.
PASSAGE = [4, 2, 7, 9, 1, 3, 8, 6, 0, 5]
CONTEXT = np.array(
    [*PASSAGE, 0, 11, 10, *PASSAGE[-8:], 2, 9, *PASSAGE[-9:], 0, 1, *PASSAGE[-7:], 5, 4, 11, *PASSAGE], dtype=np.int32
)

SAMPLERS = {
    "as it is": Sampler(),
    "temperature 0.7": Sampler(temperature=0.7),
    "temperature 1.5": Sampler(temperature=1.5),
    "top-k": Sampler(top_k=4),
    "top-p": Sampler(top_p=0.7),
    "min-p": Sampler(min_p=0.15),
    "masks": Sampler(masked=MASK),
    "repetition penalty": Sampler(repetition_penalty=1.3),
    "repetition penalty, warm": Sampler(repetition_penalty=1.3, temperature=1.2),
    "all together": Sampler(0.9, top_k=7, top_p=0.95, min_p=0.05, repetition_penalty=1.2, masked=MASK),
}


def plain_probabilities(logits: np.ndarray, sampler: Sampler, ids: list[int]) -> np.ndarray:
    """The options, implemented in the simplest way."""
    chances = (np.exp(logits) / np.exp(logits).sum()).tolist()
    for i in range(len(chances)):
        chances[i] /= sampler.repetition_penalty ** max(0, longest_passage(ids, i) - 7)
        if sampler.masked is not None and sampler.masked[i]:
            chances[i] = 0.0
        chances[i] **= 1 / sampler.temperature
    ranked = sorted(range(len(chances)), key=lambda i: (-chances[i], i))
    if sampler.top_k is not None:
        ranked = ranked[: sampler.top_k]
    if sampler.top_p is not None:
        all_of_it, kept, mass = sum(chances[i] for i in ranked), [], 0.0
        for i in ranked:
            if mass < sampler.top_p * all_of_it:
                kept.append(i)
                mass += chances[i]
        ranked = kept
    if sampler.min_p is not None:
        ranked = [i for i in ranked if chances[i] >= sampler.min_p * max(chances)]
    left = np.array([chances[i] if i in ranked else 0.0 for i in range(len(chances))])
    return left / left.sum()


def longest_passage(ids: list[int], following: int) -> int:
    """The length of the longest end of `ids` that occurred before with `following` after it."""
    longest = 0
    for at in [i for i in range(1, len(ids)) if ids[i] == following]:
        length = 0
        while length < at and ids[at - 1 - length] == ids[-1 - length]:
            length += 1
        longest = max(longest, length)
    return longest


def test_the_context_of_the_statistics_is_what_its_comment_says() -> None:
    lengths = {following: longest_passage(CONTEXT.tolist(), following) for following in range(12)}
    assert {following: length for following, length in lengths.items() if length > 1} == {2: 8, 0: 10, 5: 7}


def agree(ids: np.ndarray, chances: np.ndarray) -> bool:
    """Whether ids were drawn with these probabilities, by Pearson's chi-square test: false alarms are 1 in 10,000."""
    counts, expected = np.bincount(ids, minlength=len(chances)), chances / chances.sum() * len(ids)
    possible = expected > 0
    if counts[~possible].any():
        return False
    freedom = np.count_nonzero(possible) - 1
    chi_square = (((counts - expected) ** 2)[possible] / expected[possible]).sum()
    # Wilson and Hilferty's approximation of the 99.99 % point.
    return bool(chi_square < freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3)


def wrong_by_five_percent(chances: np.ndarray) -> Iterator[np.ndarray]:
    """Each likely id's probability a twentieth too high, and a twentieth too low."""
    likely = np.flatnonzero(chances >= 0.19)
    assert len(likely)
    for index, factor in itertools.product(likely, (0.95, 1.05)):
        wrong = chances.copy()
        wrong[index] *= factor
        yield wrong


@pytest.fixture(scope="module", params=list(SAMPLERS))
def kernel_draws(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Ids that the kernels drew, and their probabilities."""
    sampler = replace(SAMPLERS[request.param], seed=11, stream=3)
    return NativeDraw(sampler, LOGITS, CONTEXT).many(DRAWS), plain_probabilities(LOGITS, sampler, CONTEXT.tolist())


def test_the_kernels_sample_with_the_right_frequencies(kernel_draws: tuple[np.ndarray, np.ndarray]) -> None:
    ids, chances = kernel_draws
    assert agree(ids, chances)


def test_an_error_of_five_percent_would_be_detected(kernel_draws: tuple[np.ndarray, np.ndarray]) -> None:
    ids, chances = kernel_draws
    assert not any(agree(ids, wrong) for wrong in wrong_by_five_percent(chances))


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_kernel_with_an_error_of_five_percent_would_be_detected(factor: float) -> None:
    amiss = LOGITS + np.log([factor, *[1.0] * 11])
    assert not agree(NativeDraw(Sampler(seed=11, stream=3), amiss).many(DRAWS), SHARES)


@pytest.mark.parametrize("name", ["temperature 0.7", "repetition penalty, warm", "all together"])
def test_the_reference_samples_with_the_right_frequencies(name: str) -> None:
    sampler = SAMPLERS[name]
    weights = probabilities(
        penalized(LOGITS, CONTEXT, sampler.repetition_penalty),
        sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p, sampler.masked,
    )  # fmt: skip
    numbers = np.random.Generator(np.random.Philox(key=[12, 0])).random(DRAWS)
    ids = np.array([choose(weights, number) for number in numbers.tolist()])
    chances = plain_probabilities(LOGITS, sampler, CONTEXT.tolist())
    assert agree(ids, chances)
    assert not any(agree(ids, wrong) for wrong in wrong_by_five_percent(chances))


def bias_only(size: int, bias: np.ndarray) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """A network with the same output for every input."""
    config = ModelConfig(units=16, embedding_size=4)
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in config.weight_shapes(size).items()}
    return config, weights | {"head.bias": bias.astype(np.float32)}


@pytest.mark.parametrize("precision", ["f32", "bf16", "q8"])
def test_the_engines_text_has_the_right_frequencies(precision: str) -> None:
    """Of the ids and of pairs of them: each draw is independent of the one before."""
    if kernels.load() is None:
        pytest.skip("200,000 steps take long without the C kernels")
    shares = SHARES[:6] / SHARES[:6].sum()
    engine = Engine(*bias_only(6, np.log(shares)), precision, threads=1)
    sampler = Sampler(seed=13, min_p=0.15 * shares[0])
    stream = Stream(engine.zero_state()[0], np.array([0], dtype=np.int32), 1, sampler=sampler)
    engine.advance([stream], DRAWS)
    ids = stream.ids[1 : stream.length].astype(np.int64)
    assert len(ids) == DRAWS
    assert agree(ids, shares)
    assert not any(agree(ids, wrong) for wrong in wrong_by_five_percent(shares))
    assert agree(ids[:-1:2] * 6 + ids[1::2], np.outer(shares, shares).reshape(-1))


# --- C and NumPy ---


def check_both_draw_the_same(
    sampler: Sampler, logits: np.ndarray, ids: np.ndarray = NOTHING_YET, drawn: int = 0, count: int = 1
) -> None:
    native = NativeDraw(sampler, logits, ids, drawn)
    for number in range(drawn, drawn + count):
        expected = sampler.draw(logits, ids, number)
        found = native()
        assert found == expected, (sampler, logits, ids, number)
    assert native.drawn == drawn + count


def rows_of_logits(random: np.random.Generator, size: int) -> Iterator[np.ndarray]:
    while True:
        yield random.normal(size=size) * random.choice([0.01, 1, 5, 300])
        yield random.normal(size=size).astype(np.float32).astype(np.float64) * 3  # what f32 and bf16 give
        yield np.rint(random.normal(size=size) * 2**18) / 2**16  # what q8 gives
        yield random.integers(-2, 3, size).astype(np.float64)  # many equals
        yield random.choice([-0.0, 0.0, -1e-320, 1e-17], size)
        yield random.choice([1e308, -1e308, 0.0, 800.0, 92.0], size)
        yield np.zeros(size)


def histories(random: np.random.Generator, size: int) -> Iterator[np.ndarray]:
    """Texts that repeat themselves in many ways."""
    while True:
        yield random.integers(0, size, 40)
        period = random.integers(0, size, random.integers(1, 30))
        yield np.tile(period, 300 // len(period))
        yield np.concatenate([np.tile(period, 4), random.integers(0, size, 3), period[:9], period])
        yield np.full(random.integers(0, 60), random.integers(0, size))
        yield np.array([0, 1] * 700)  # longer than the window
        fibonacci = [[0], [0, 1]]
        while len(fibonacci) < 13:
            fibonacci.append(fibonacci[-1] + fibonacci[-2])
        yield np.array(fibonacci[-1])
        yield random.integers(0, size, 2)
        yield random.integers(0, size, 1)


def random_sampler(random: np.random.Generator, size: int) -> Sampler:
    def one_of(*values: Any) -> Any:
        return values[random.integers(len(values))]

    masked = random.random(size) < one_of(0.1, 0.5, 0.99)
    masked[random.integers(size)] = False
    return Sampler(
        temperature=one_of(0, 5e-324, 1e-300, 1e-3, 0.5, 0.8, 1, 1.5, 100, random.random()),
        top_k=one_of(None, 1, 2, 5, size - 1, size, size + 1, int(random.integers(1, size + 1))),
        top_p=one_of(None, 5e-324, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-16, 1.0, random.uniform(0.01, 1)),
        min_p=one_of(None, 1e-300, 0.01, 0.5, 1.0, random.uniform(0.001, 1)),
        repetition_penalty=one_of(1.0, 1.0000001, 1.1, 2.0, 1000.0),
        masked=one_of(None, masked),
        seed=int(random.integers(2**63)),
        stream=int(random.integers(2**16)),
    )


@pytest.mark.parametrize(("size", "count"), [(2, 1500), (3, 700), (66, 2000), (300, 500), (5000, 250)])
def test_c_and_numpy_draw_the_same_with_any_options(size: int, count: int) -> None:
    random = np.random.Generator(np.random.Philox(size))
    rows, before = rows_of_logits(random, size), histories(random, size)
    for _ in range(count):
        sampler = random_sampler(random, size)
        check_both_draw_the_same(sampler, next(rows), next(before).astype(np.int32), int(random.integers(2**40)))


@pytest.mark.parametrize("size", [2, 66, 5000])
def test_c_and_numpy_draw_the_same_many_times_running(size: int) -> None:
    random = np.random.Generator(np.random.Philox(size))
    for temperature in (0.6, 1.0, 1.4):
        check_both_draw_the_same(Sampler(temperature, seed=5), random.normal(size=size) * 2, count=250)


@pytest.fixture(scope="module")
def extreme_numbers() -> tuple[int, int]:
    """Which of a stream's random numbers are the least and the greatest of four million."""
    numbers = np.random.Generator(np.random.Philox(key=[8, 1])).random(4_000_000)
    assert numbers.min() < 1e-6 < 1 - 1e-6 < numbers.max()
    return int(numbers.argmin()), int(numbers.argmax())


@pytest.mark.parametrize("size", [2, 66, 5000])
def test_c_and_numpy_draw_the_same_at_both_ends(extreme_numbers: tuple[int, int], size: int) -> None:
    random = np.random.Generator(np.random.Philox(size))
    for logits, index in itertools.product(itertools.islice(rows_of_logits(random, size), 14), extreme_numbers):
        masked = np.zeros(size, dtype=np.bool_)
        masked[0] = True
        for mask, temperature in itertools.product((None, masked, masked[::-1].copy()), (0.01, 1, 100)):
            check_both_draw_the_same(Sampler(temperature, masked=mask, seed=8, stream=1), logits, drawn=index)


ANY_LOGITS = st.lists(st.floats(-1e300, 1e300) | st.sampled_from([-0.0, 0.0, 1.0, 2.0]), min_size=1, max_size=20)


@settings(max_examples=400)
@given(ANY_LOGITS, st.data())
def test_c_and_numpy_draw_the_same_from_anything(logits: list[float], data: st.DataObject) -> None:
    size = len(logits)
    masked = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    assume(not masked.all())
    sampler = Sampler(
        data.draw(st.floats(0, 100)),
        data.draw(st.none() | st.integers(1, 25)),
        data.draw(st.none() | st.floats(0, 1, exclude_min=True)),
        data.draw(st.none() | st.floats(0, 1, exclude_min=True)),
        data.draw(st.just(1.0) | st.floats(1, 1000)),
        masked,
        data.draw(st.integers(0, 2**63 - 1)),
        data.draw(st.integers(0, 2**64 - 1)),
    )
    half = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    ids = np.array(half * data.draw(st.integers(1, 5)), dtype=np.int32)
    check_both_draw_the_same(sampler, np.array(logits), ids, data.draw(st.integers(0, 2**62)))


# --- Random numbers ---


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (7, 1), (2**32, 65535), (2**63 - 1, 3), (5, 2**64 - 1)])
def test_the_random_numbers_are_those_of_numpys_philox(seed: int, stream: int) -> None:
    key = np.array([seed, stream], dtype=np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key)).random(1001)
    assert [uniform(seed, stream, index) for index in range(len(expected))] == expected.tolist()


def test_random_numbers_are_part_of_the_format() -> None:
    """Other numbers would give other texts for the same seed."""
    assert [uniform(7, 1, i) for i in range(3)] == [0.8824668302545412, 0.3690383346754841, 0.5170696944527113]


def test_streams_and_seeds_have_their_own_numbers() -> None:
    keys = [(7, 0), (7, 1), (8, 0), (0, 7), (2**63 - 1, 0), (7, 65535)]
    numbers = np.array([[uniform(*key, index) for index in range(1000)] for key in keys])
    assert len(np.unique(numbers)) == numbers.size
    assert np.abs(np.corrcoef(numbers) - np.eye(len(keys))).max() < 0.15


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5, 1023, 2**20 + 2, 2**40 + 3, 10**15 + 1, 2**63, 2**64 - 3])
@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (7, 1), (2**31, 2**16), (2**63 - 1, 65535)])
def test_c_has_the_same_random_numbers_to_the_last_bit(seed: int, stream: int, index: int) -> None:
    """Two ids whose border lies at the very number: a few units in the last place of a logit change what is drawn."""
    number = uniform(seed, stream, index)
    assert 1e-6 < number < 1 - 1e-6
    border = math.log(number / (1 - number)) if number < 0.5 else math.log((1 - number) / number)
    unit = 2.0**-52 * (1 + math.exp(-border)) * max(1.0, -border)  # moves the border by about one of the number's own
    sampler, drawn = Sampler(seed=seed, stream=stream), []
    for near in (np.arange(-8, 9) * unit + border).tolist():
        logits = np.array([near, 0.0]) if number < 0.5 else np.array([0.0, near])
        check_both_draw_the_same(sampler, logits, drawn=index)
        drawn.append(sampler.draw(logits, NOTHING_YET, index))
    assert set(drawn) == {0, 1}


@pytest.mark.parametrize("below", range(2, 38, 5))
def test_thousands_of_unlikely_ids_count_in_c_too(below: int) -> None:
    """Each is e^below less likely than the most likely one; together they move the boundary between two others."""
    logits = np.full(5000, -float(below))
    for seed in range(6):
        number = uniform(seed, 0, 0)
        first = number / (1 - number) * (1 + 4998 * math.exp(-below))
        if first > 1:
            continue
        logits[[0, -1]] = math.log(first), 0.0
        for step in range(-3, 4):
            logits[0] = math.log(first) + step * 4998 * math.exp(-below) * 1e-3
            check_both_draw_the_same(Sampler(seed=seed), logits)


# --- The exponential function ---


def test_exponential_is_exact_to_two_units_in_the_last_place() -> None:
    random = np.random.Generator(np.random.Philox(2))
    x = -np.concatenate(
        [random.uniform(0, 708, 50_000), random.exponential(3, 50_000), 10 ** random.uniform(-320, 0, 10_000),
         np.log(2) / 2 * np.arange(0, 2040, 0.5)]
    )  # fmt: skip
    x = np.concatenate([x, np.nextafter(x, 1), np.nextafter(x, -1000)])
    x = x[(x > -708) & (x <= 0)]
    expected = np.array([math.exp(value) for value in x.tolist()])
    assert (np.abs(exponential(x) - expected) <= 2 * np.spacing(expected)).all()


def test_exponential_at_its_ends() -> None:
    ends = np.array([0.0, -0.0, -5e-324, -708.0, np.nextafter(-708, -709), -1e300, -np.inf])
    np.testing.assert_array_equal(exponential(ends), [1, 1, 1, 0, 0, 0, 0])
    assert exponential(np.array([np.nextafter(-708.0, 0)]))[0] == pytest.approx(math.exp(-708), rel=1e-12)


# --- What the options do ---

ROWS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))
TEMPERATURES = st.floats(0.05, 100)


def shared(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


@given(ROWS, TEMPERATURES)
def test_probabilities_are_the_softmax(logits: np.ndarray, temperature: float) -> None:
    assume(np.abs(logits / temperature).max() < 300)
    powers = np.exp(logits.astype(np.float64) / temperature)
    found = probabilities(logits, temperature)
    assert found.max() == 1
    np.testing.assert_allclose(shared(found), powers / powers.sum(), rtol=1e-9, atol=1e-300)


def test_temperature_zero_takes_the_most_likely_and_the_first_among_equals() -> None:
    logits = np.array([0.0, 3.0, 1.0, 3.0])
    np.testing.assert_array_equal(probabilities(logits, 0), [0, 1, 0, 0])
    assert NativeDraw(Sampler(0), logits).many(50).tolist() == [1] * 50
    signed_zeros = np.array([-1.0, -0.0, 0.0, -0.0])
    np.testing.assert_array_equal(probabilities(signed_zeros, 0), [0, 1, 0, 0])
    assert NativeDraw(Sampler(0), signed_zeros)() == 1


def test_temperature_zero_minds_the_mask_and_the_penalty() -> None:
    masked = np.array([False, True, False])
    logits = np.array([0.0, 3.0, 1.0])
    np.testing.assert_array_equal(probabilities(logits, 0, masked=masked), [0, 0, 1])
    assert NativeDraw(Sampler(0, masked=masked), logits)() == 2
    round_and_round = np.array([0, 1, 2] * 5, dtype=np.int32)  # id 0 would go on with it
    repeating = Sampler(0, repetition_penalty=1.5)
    for sampler, expected in ((Sampler(0), 0), (repeating, 2), (replace(repeating, masked=np.eye(3)[2] > 0), 1)):
        assert sampler.draw(np.array([1.0, 0.5, 0.9]), round_and_round, 0) == expected
        assert NativeDraw(sampler, np.array([1.0, 0.5, 0.9]), round_and_round)() == expected


def test_temperature_zero_uses_up_random_numbers_too() -> None:
    """How many were used is how many ids were drawn, whatever the temperature was on the way."""
    native = NativeDraw(Sampler(0), LOGITS, drawn=5)
    native.many(3)
    assert native.drawn == 8


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-10, 1e-3])
def test_a_tiny_temperature_does_not_overflow(temperature: float) -> None:
    np.testing.assert_array_equal(probabilities(np.array([-500.0, 30.0, 29.0, 3e38]), temperature), [0, 0, 0, 1])
    np.testing.assert_array_equal(probabilities(np.array([2.0, 1.0, 2.0]), temperature), [1, 0, 1])


def test_a_high_temperature_levels() -> None:
    hot = shared(probabilities(np.array([0.0, 1.0, 2.0]), 100))
    assert hot.max() - hot.min() < 0.01
    assert hot[2] > hot[1] > hot[0]


@given(ROWS, st.integers(1, 50), TEMPERATURES)
@example(np.zeros(7, dtype=np.float32), 3, 1.0)
def test_top_k_keeps_the_k_most_likely(logits: np.ndarray, k: int, temperature: float) -> None:
    whole, cut = probabilities(logits, temperature), probabilities(logits, temperature, top_k=k)
    kept = np.flatnonzero(cut)
    assert len(kept) == min(k, np.count_nonzero(whole))
    np.testing.assert_array_equal(cut[kept], whole[kept])
    ranked = sorted(range(len(whole)), key=lambda i: (-whole[i], i))[: len(kept)]
    assert sorted(ranked) == kept.tolist()  # among equals the first ones


@given(ROWS, st.floats(0.01, 1), TEMPERATURES)
def test_top_p_keeps_the_fewest_that_have_the_mass(logits: np.ndarray, p: float, temperature: float) -> None:
    whole, cut = probabilities(logits, temperature), probabilities(logits, temperature, top_p=p)
    kept = np.flatnonzero(cut)
    np.testing.assert_array_equal(cut[kept], whole[kept])
    mass = shared(whole)[kept].sum()
    assert mass >= p - 1e-9
    if p < 1:  # Without the least likely of them, the mass would not be there.
        assert mass - shared(whole)[kept].min() < p + 1e-9
    assert np.delete(whole, kept).max(initial=0) <= whole[kept].min()


@given(ROWS, st.floats(0, 1, exclude_min=True), TEMPERATURES)
def test_min_p_keeps_what_has_its_share_of_the_most_likely(logits: np.ndarray, p: float, temperature: float) -> None:
    whole, cut = probabilities(logits, temperature), probabilities(logits, temperature, min_p=p)
    np.testing.assert_array_equal(cut, [weight if weight >= p * whole.max() else 0 for weight in whole.tolist()])
    assert cut.max() == 1


def test_top_p_is_of_what_top_k_left() -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    # Of the two most likely, the first has 4/7, more than half.
    np.testing.assert_array_equal(probabilities(logits, top_k=2, top_p=0.5), [1, 0, 0, 0])
    np.testing.assert_allclose(shared(probabilities(logits, top_p=0.5)), [4 / 7, 3 / 7, 0, 0])


NARROW: list[Callable[[int], Sampler]] = [
    lambda seed: Sampler(100, top_k=1, seed=seed),
    lambda seed: Sampler(100, top_p=5e-324, seed=seed),
    lambda seed: Sampler(100, top_p=1e-9, seed=seed),
    lambda seed: Sampler(100, min_p=1.0, seed=seed),
]


@pytest.mark.parametrize("narrow", NARROW)
def test_the_narrowest_options_leave_the_most_likely(narrow: Callable[[int], Sampler]) -> None:
    logits = np.array([0.1, 0.3, 0.29, -7.0])
    for seed in range(20):
        assert narrow(seed).draw(logits, NOTHING_YET, seed) == 1
        assert NativeDraw(narrow(seed), logits).many(20).tolist() == [1] * 20


@given(ROWS, st.data())
def test_masked_ids_are_never_drawn(logits: np.ndarray, data: st.DataObject) -> None:
    masked = np.array(data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))))
    assume(not masked.all())
    temperature = data.draw(st.sampled_from([0, 1e-300, 0.5, 1, 100]))
    top_k = data.draw(st.none() | st.integers(1, 50))
    top_p = data.draw(st.none() | st.floats(0.01, 1))
    min_p = data.draw(st.none() | st.floats(0.01, 1))
    before = logits.copy()
    weights = probabilities(logits, temperature, top_k, top_p, min_p, masked)
    assert weights[masked].sum() == 0
    assert weights.max() == 1
    np.testing.assert_array_equal(logits, before)
    for number in (0.0, 0.5, np.nextafter(1, 0)):
        assert not masked[choose(weights, number)]
    assert not masked[NativeDraw(Sampler(temperature, top_k, top_p, min_p, 1.0, masked), logits).many(5)].any()


def test_a_mask_outweighs_any_probability(extreme_numbers: tuple[int, int]) -> None:
    """The masked id has all of the probability but 10^-300 of it, and stands at either end."""
    for at in (0, 1, 2, 3):
        logits, masked = np.zeros(4), np.arange(4) == at
        logits[at] = 700.0
        sampler = Sampler(masked=masked, seed=8, stream=1)
        assert not masked[NativeDraw(sampler, logits).many(300)].any()
        for index in extreme_numbers:
            assert not masked[sampler.draw(logits, NOTHING_YET, index)]
            assert not masked[NativeDraw(sampler, logits, drawn=index)()]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_a_draw_never_has_probability_zero(weights: list[float], number: float) -> None:
    array = np.array(weights)
    assume(array.sum() > 1e-300)
    assert array[choose(array, number)] > 0


def test_draws_lie_where_the_cumulative_probability_says() -> None:
    weights = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    drawn = [choose(weights, number) for number in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999)]
    assert drawn == [1, 1, 3, 3, 4, 4]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 2), max_size=60), st.floats(1.01, 10))
def test_the_penalty_is_for_the_longest_passage_that_would_go_on(ids: list[int], penalty: float) -> None:
    lowered = penalized(np.zeros(4), np.array(ids, dtype=np.int32), penalty)
    expected = [-math.log(penalty) * max(0, longest_passage(ids, i) - 7) for i in range(4)]
    np.testing.assert_allclose(lowered, expected, rtol=1e-12)


def test_the_penalty_looks_back_so_far_and_no_further() -> None:
    """Eight ids that begin 1,024 before the end are the last that count."""
    passage, after = list(range(1, 11)), 11
    for between, expected in ((1005, True), (1006, False)):
        ids = np.array([*passage, after, *[0] * between, *passage], dtype=np.int32)
        assert len(ids) - passage.index(3) == (1024 if expected else 1025)
        assert bool(penalized(np.zeros(12), ids, 2.0)[after]) is expected
        check_both_draw_the_same(Sampler(repetition_penalty=1000.0), np.eye(12)[after], ids, count=30)
