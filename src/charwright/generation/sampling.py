"""Logits become one id: masks, penalties, temperature, top-k, top-p, min-p, and draws that a seed makes again.

This is the definition, in plain numpy; `kernels/sampling.c` does the same operations in the same order. All are
additions, multiplications, divisions and comparisons of float64, so that every machine and language that follows IEEE
754 draws the same ids from the same logits. A draw depends on nothing but its row of logits, what was written before,
the options and the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PENALTY_FROM = 8
"""A repeat of fewer characters than this is no repetition but a word."""
PENALTY_WINDOW = 1024
"""How many of the last ids the repetition penalty looks back on."""


@dataclass(frozen=True)
class Sampler:
    """How one stream draws: the options, and the key of its random numbers."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    masked: npt.NDArray[np.bool_] | None = None
    """(V,): True where an id must not be drawn."""
    seed: int = 0
    stream: int = 0

    def draw(self, logits: Floats, ids: npt.NDArray[np.int32], drawn: int) -> int:
        """The next id after `ids`, from logits (V,); `drawn` is how many were drawn before."""
        chances = probabilities(
            penalized(logits, ids, self.repetition_penalty),
            self.temperature, self.top_k, self.top_p, self.min_p, self.masked,
        )  # fmt: skip
        return choose(chances, uniform(self.seed, self.stream, drawn))


def probabilities(
    logits: npt.NDArray[np.floating],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    masked: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """The probabilities (V,) that a draw is made from, up to a common factor: the likeliest id has 1.

    Masked ids have 0 whatever the temperature. A temperature of 0 leaves the likeliest id alone (the first, among
    equals). Top-k comes before top-p (Holtzman et al., 2020, arXiv:1904.09751), and that before min-p (Nguyen et al.,
    2024, arXiv:2407.01082), which keeps what has at least that share of the likeliest one's probability.
    """
    scores: Floats = logits.astype(np.float64)
    if masked is not None:
        scores[masked] = -np.inf
    if temperature == 0:
        greedy = np.zeros_like(scores)
        greedy[np.argmax(scores)] = 1.0
        return greedy
    with np.errstate(over="ignore"):  # A tiny temperature sends all but the likeliest to minus infinity.
        weights = exponential((scores - scores.max()) / temperature)
    if top_k is not None and top_k < len(weights):
        weights = _only(weights, _by_likelihood(weights)[:top_k])
    if top_p is not None and top_p < 1:
        order = _by_likelihood(weights)
        before = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
        weights = _only(weights, order[before < top_p * _total(weights)])
    if min_p is not None:
        weights = np.where(weights < min_p, 0.0, weights)
    return weights


def penalized(logits: Floats, ids: npt.NDArray[np.int32], penalty: float) -> Floats:
    """Logits (V,) lowered for each id that would go on repeating what stands in `ids`.

    Characters recur all the time and passages should not: so what counts is the longest passage at the end of `ids`
    that stood there before, with this id behind it. From 8 characters on, each divides the id's probability by
    `penalty` once more. (Penalties for single tokens, as in Keskar et al., 2019, arXiv:1909.05858, would forbid the
    letter e.)
    """
    if penalty == 1 or len(ids) < 2:
        return logits
    recent = ids[-PENALTY_WINDOW:]
    following, lengths = recent[1:], _repeats(recent)
    longest = np.zeros(len(logits), dtype=np.int64)
    np.maximum.at(longest, following, lengths)
    over = np.maximum(longest - PENALTY_FROM + 1, 0)
    return logits - math.log(penalty) * over


def _repeats(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """For each position but the first: how many ids before it are those at the end."""
    count = len(ids)
    lengths = np.zeros(count - 1, dtype=np.int64)
    alive = np.arange(1, count)
    back = 1
    while len(alive):
        alive = alive[alive >= back]
        alive = alive[ids[alive - back] == ids[count - back]]
        lengths[alive - 1] = back
        back += 1
    return lengths


def choose(weights: Floats, uniform: float) -> int:
    """The id at which the cumulative weight passes `uniform`, a number in [0, 1), times all of it."""
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    # Rounding at the very end must not step onto an id of probability 0.
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])


def uniform(seed: int, stream: int, index: int) -> float:
    """Random number `index` of a stream: Philox (Salmon et al., 2011), keyed by the seed and the stream's index."""
    philox = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    philox.advance(index // 4)
    return float(np.random.Generator(philox).random(index % 4 + 1)[-1])


def exponential(x: Floats) -> Floats:
    """e^x for x <= 0, the same on every machine; 0 below -708.

    2^k e^r with |r| <= ln(2) / 2, and e^r by its Taylor polynomial of degree 13: within 2 units in the last place.
    """
    bounded = np.maximum(x, -708.0)
    k = (bounded * 1.4426950408889634 + 6755399441055744.0) - 6755399441055744.0
    r = (bounded - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    p = np.full_like(r, 1 / math.factorial(13))
    for n in range(12, -1, -1):
        p = p * r + 1 / math.factorial(n)
    return np.where(x > -708.0, np.ldexp(p, k.astype(np.int32)), 0.0)


def _by_likelihood(weights: Floats) -> npt.NDArray[np.intp]:
    """All ids, the likeliest first; among equals the smaller id."""
    return np.argsort(-weights, kind="stable")


def _total(weights: Floats) -> float:
    """The sum in the order of the ids: numpy's own sum adds in an order of its own."""
    return float(np.cumsum(weights)[-1])


def _only(weights: Floats, kept: npt.NDArray[np.intp]) -> Floats:
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return result
