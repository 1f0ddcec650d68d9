"""Logits become one id: temperature, top-k, top-p, masks, and draws that a seed makes again.

All in float64, over one row of logits (V,): a row's draw depends on nothing but the row, the options and the seed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def probabilities(
    logits: npt.NDArray[np.floating],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    masked: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """The probabilities (V,) that a draw is made from.

    Masked ids have probability 0 whatever the temperature. A temperature of 0 puts everything on the likeliest id
    (the first, among equals). Top-k comes before top-p (Holtzman et al., 2020, arXiv:1904.09751).
    """
    scores: Floats = logits.astype(np.float64)
    if masked is not None:
        scores[masked] = -np.inf
    if temperature == 0:
        greedy = np.zeros_like(scores)
        greedy[np.argmax(scores)] = 1.0
        return greedy
    # The likeliest has exp(0); where a tiny temperature sends the others to minus infinity, exp makes them 0.
    with np.errstate(over="ignore"):
        weights: Floats = np.exp((scores - scores.max()) / temperature)
    if top_k is not None and top_k < len(weights):
        kept = np.argsort(-weights, kind="stable")[:top_k]
        weights = _only(weights, kept)
    weights /= weights.sum()
    if top_p is not None and top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights = _only(weights, order[before < top_p])
        weights /= weights.sum()
    return weights


def draw(probability: Floats, uniform: float) -> int:
    """The id at which the cumulative probability passes `uniform`, a number in [0, 1)."""
    cumulative = np.cumsum(probability)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    # Rounding at the very end must not step onto an id of probability 0.
    return index if index < len(probability) else int(np.flatnonzero(probability)[-1])


def uniforms(seed: int, stream: int) -> np.random.Generator:
    """The random numbers of one stream: Philox (Salmon et al., 2011), keyed by the seed and the stream's index."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def _only(weights: Floats, kept: npt.NDArray[np.intp]) -> Floats:
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return result
