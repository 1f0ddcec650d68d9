"""The repetition penalty: a lower probability for tokens that continue a repeated passage."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]

PENALTY_FROM = 8
"""The shortest repeat that is penalized: shorter ones are words."""
PENALTY_WINDOW = 1024
"""The number of recent ids that the repetition penalty considers."""


def penalized(logits: Float64s, ids: npt.NDArray[np.int32], penalty: float) -> Float64s:
    """Lower the logits (V,) of ids that would continue a repetition in `ids`.

    Characters recur all the time, but passages should not. What counts is the longest passage at the end of `ids` that
    occurred before with this id after it: from 8 characters on, each divides the id's probability by `penalty` once
    more. (Penalties for single tokens, as in Keskar et al., 2019, arXiv:1909.05858, would forbid the letter e.)
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
    """For each position after the first: the length of the longest match between the ids before it and the end."""
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
