"""The n-grams of a model: after each context, which numbers of an array add to the logits.

A model with n-grams has an array of 2^bits + V numbers, `ngrams.weight`. The last 2, 3, ... tokens, up to the order of
the model, are each hashed to an offset, and the V numbers from there on are added to the logits (Mikolov et al., 2011,
"Strategies for training large scale neural network language models", RNNME). The recurrent network then has to learn
only what the n-grams do not say. Rows overlap, so the array may be small whatever the vocabulary.

With c_0 = 1 + the id of the token read last, c_k = 1 + that of the kth token before it, and 0 where there is none:

    offset_n = ((c_0 * m_n0 + ... + c_(n-1) * m_n(n-1)) mod 2^32) >> (32 - bits)    for n = 2, ..., order

or 2^bits, the last possible offset, if one of the c is 0: all contexts that begin before the text share one row.

The kernels, the exports and this module compute the same offsets. V is the vocabulary size, K = order - 1 the number of
contexts, and of the tokens before the last one that they have.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MULTIPLIERS = (
    (0x7984A8AB, 0x71E273A9),
    (0x081C5253, 0x9FB93535, 0xABD2D9F3),
    (0xF93FE42F, 0x14BE09AB, 0xDB149E47, 0x4A95902B),
    (0xE7D80069, 0xB9096A05, 0xAFAE5A3B, 0xC963CFE1, 0xC439F34B),
    (0xE1454C41, 0xE794EE15, 0x26B563B1, 0x42840D2B, 0xAC8BE7D7, 0xA2BEEE31),
    (0xD96E5ADF, 0xE7AA8577, 0x19FCFC65, 0xDF43EFB3, 0x53D23C0B, 0x92AC3D43, 0xE7CA430F),
    (0x2B5C5CD1, 0x06E82A01, 0x69599355, 0x6820212D, 0xFE6C2B03, 0x1333BC1D, 0x1A6E72B9, 0x20050ED3),
)
"""m_n for n = 2, 3, ...: odd numbers at random."""

HIGHEST_ORDER = len(MULTIPLIERS[-1])

Int64s = npt.NDArray[np.int64]


def in_words(bits: int, order: int) -> str:
    """The n-grams of a model, for people; bits is not 0."""
    lengths = "2 tokens" if order == 2 else f"2 to {order} tokens"
    return f"n-grams of {lengths} ({1 << bits:,} numbers)"


def offsets_of(ids: npt.NDArray[np.integer], before: npt.NDArray[np.integer], bits: int) -> Int64s:
    """The offsets (K, B) after reading ids (B,), with `before` (B, K): c_1, c_2, ... of each."""
    marks = np.concatenate([ids[:, None].astype(np.int64) + 1, before.astype(np.int64)], axis=1)
    rows = MULTIPLIERS[: before.shape[1]]
    sums = np.stack([marks[:, : len(row)] @ np.array(row, dtype=np.int64) for row in rows])
    complete = np.stack([marks[:, : len(row)].all(axis=1) for row in rows])
    return np.where(complete, (sums & 0xFFFFFFFF) >> (32 - bits), 1 << bits)


def moved_on(ids: npt.NDArray[np.integer], before: npt.NDArray[np.integer]) -> Int64s:
    """What `before` (B, K) is for the token after ids (B,)."""
    return np.concatenate([ids[:, None].astype(np.int64) + 1, before[:, :-1].astype(np.int64)], axis=1)
