"""How much a text repeats itself, which tells how far its n-grams can be trusted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from charwright.data.mapped_text import MappedText

PASSAGE = 12
BLOCKS = 19
"""A prime number: copies of a text that make up the whole are not all in the blocks."""
SHARE = 0.1
MOST_CHARACTERS = 1_000_000
"""Characters of a text that are looked at."""
TYPICAL = 0.27
"""The repetition of a text of which nothing is known."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number; products modulo 2^64 make hashes of passages."""

Hashes = npt.NDArray[np.uint64]


def repetition(text: str | MappedText) -> float:
    """The share of the passages of 12 characters in a tenth of a text that also occur in the rest of it.

    The tenth consists of blocks that are evenly spread. It is 0 for a text of fewer than about 200 characters.
    """
    hashes = _passages(text[:MOST_CHARACTERS])
    apart = np.zeros(len(hashes), dtype=bool)
    size = int(len(hashes) * SHARE / BLOCKS)
    for block in range(BLOCKS):
        begin = len(hashes) * block // BLOCKS
        apart[begin : begin + size] = True
    # A passage at the edge of a block is partly in the rest.
    rest = ~apart & ~np.roll(apart, -PASSAGE)
    if not size:
        return 0.0
    known, asked = np.sort(hashes[rest]), np.sort(hashes[apart])
    found = np.searchsorted(known, asked).clip(max=len(known) - 1)
    return float((known[found] == asked).mean())


def _passages(text: str) -> Hashes:
    """A hash of the passage that begins at each character: (N - 11,)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = max(0, len(codes) - PASSAGE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(PASSAGE):
        hashes = (hashes + codes[offset : offset + count] + np.uint64(1)) * MULTIPLIER
        hashes ^= hashes >> np.uint64(32)
    return hashes
