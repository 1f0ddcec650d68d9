"""Sample an id from logits: masks, repetition penalty, temperature, top-k, top-p, min-p, reproducible draws.

This is the reference, in NumPy; `kernels/sampling.c` and `kernels/exponentials.c` perform the same operations in the
same order. All are additions, multiplications, divisions and comparisons of float64, so that every machine and language
that follows IEEE 754 draws the same ids from the same logits. A draw depends only on its row of logits, the ids before
it, the options and the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charwright.generation.portable_exp import exponential
from charwright.generation.repetition import penalized

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampler:
    """The sampling options of a stream, and the key of its random numbers."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    masked: npt.NDArray[np.bool_] | None = None
    """(V,): True for ids that must not be sampled."""
    seed: int = 0
    stream: int = 0

    def draw(self, logits: Float64s, ids: npt.NDArray[np.int32], drawn: int) -> int:
        """Sample the id after `ids`, from logits (V,). `drawn` is the number of draws before."""
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
) -> Float64s:
    """The probabilities (V,) to sample from, up to a common factor: the most likely id has 1.

    Masked ids have 0 at any temperature. A temperature of 0 keeps only the most likely id (the first of equals). Top-k
    is applied before top-p (Holtzman et al., 2020, arXiv:1904.09751), and top-p before min-p (Nguyen et al., 2024,
    arXiv:2407.01082), which keeps ids with at least that share of the most likely id's probability.
    """
    scores: Float64s = logits.astype(np.float64)
    if masked is not None:
        scores[masked] = -np.inf
    if temperature == 0:
        greedy = np.zeros_like(scores)
        greedy[np.argmax(scores)] = 1.0
        return greedy
    with np.errstate(over="ignore"):  # At a tiny temperature, all but the largest are minus infinity.
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


def choose(weights: Float64s, uniform: float) -> int:
    """The id at which the cumulative weight exceeds `uniform`, a number in [0, 1), times the total."""
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    # Rounding at the end must not select an id of probability 0.
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])


def uniform(seed: int, stream: int, index: int) -> float:
    """Random number `index` of a stream, from Philox (Salmon et al., 2011) keyed by the seed and the stream's index."""
    philox = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    philox.advance(index // 4)
    return float(np.random.Generator(philox).random(index % 4 + 1)[-1])


def _by_likelihood(weights: Float64s) -> npt.NDArray[np.intp]:
    """All ids, the most likely first; of equals, the smaller id first."""
    return np.argsort(-weights, kind="stable")


def _total(weights: Float64s) -> float:
    """The sum in the order of the ids; np.sum adds in another order."""
    return float(np.cumsum(weights)[-1])


def _only(weights: Float64s, kept: npt.NDArray[np.intp]) -> Float64s:
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return result
