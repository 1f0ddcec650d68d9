"""The n-grams of a model: after each context, which numbers of an array add to the logits.

A model with n-grams has an array of 2^bits + V numbers, `ngrams.weight`. The last 2, 3 and 4 tokens are each hashed to
an offset, and the V numbers from there on are added to the logits (Mikolov et al., 2011, "Strategies for training large
scale neural network language models", RNNME). The recurrent network then has to learn only what the n-grams do not
say. Rows overlap, so the array may be small whatever the vocabulary.

With c_0 = 1 + the id of the token read last, c_k = 1 + that of the kth token before it, and 0 where there is none:

    offset_n = ((c_0 * m_n0 + ... + c_(n-1) * m_n(n-1)) mod 2^32) >> (32 - bits)

or 2^bits, the last possible offset, if one of the c is 0: all contexts that begin before the text share one row.

The kernels, the exports and this module compute the same offsets. V is the vocabulary size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MULTIPLIERS = (
    (0x7984A8AB, 0x71E273A9),
    (0x081C5253, 0x9FB93535, 0xABD2D9F3),
    (0xF93FE42F, 0x14BE09AB, 0xDB149E47, 0x4A95902B),
)
"""m_n for n = 2, 3 and 4: odd numbers at random."""

BEFORE = len(MULTIPLIERS[-1]) - 1
"""The tokens before the last one that a context has."""

Int64s = npt.NDArray[np.int64]


def offsets_of(ids: npt.NDArray[np.integer], before: npt.NDArray[np.integer], bits: int) -> Int64s:
    """The offsets (3, B) after reading ids (B,), with `before` (B, 3): c_1, c_2 and c_3 of each."""
    marks = np.concatenate([ids[:, None].astype(np.int64) + 1, before.astype(np.int64)], axis=1)
    sums = np.stack([marks[:, : len(row)] @ np.array(row, dtype=np.int64) for row in MULTIPLIERS])
    complete = np.stack([marks[:, : len(row)].all(axis=1) for row in MULTIPLIERS])
    return np.where(complete, (sums & 0xFFFFFFFF) >> (32 - bits), 1 << bits)


def moved_on(ids: npt.NDArray[np.integer], before: npt.NDArray[np.integer]) -> Int64s:
    """What `before` (B, 3) is for the token after ids (B,)."""
    return np.concatenate([ids[:, None].astype(np.int64) + 1, before[:, :-1].astype(np.int64)], axis=1)
