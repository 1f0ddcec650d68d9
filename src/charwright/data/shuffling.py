"""The order of the windows of an epoch: kept for most texts, and computed where it is needed for very large ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

KEPT_UP_TO = 1 << 22
"""An order of more numbers than this is computed: it would take 8 bytes for each, and a pause at each epoch."""

ROUNDS = 8


class Permutation:
    """The numbers from 0 to `count` - 1 in a random order, of which any part can be computed alone.

    A Feistel network with one key per round (Luby & Rackoff, 1988) permutes the numbers of as many bits as `count`
    needs. A result that is too large is permuted again until it is not (Black & Rogaway, 2002), less than twice on
    average.
    """

    def __init__(self, count: int, keys: Sequence[int]) -> None:
        """Take an even number of 64-bit keys."""
        self.count = count
        bits = max(2, (count - 1).bit_length())
        self._bits = (bits // 2, bits - bits // 2)
        self._keys = [np.uint64(key) for key in keys]

    def __getitem__(self, key: slice) -> Array:
        """Return the numbers at positions of the order: (N,)."""
        numbers = self._once(np.arange(*key.indices(self.count), dtype=np.uint64))
        while len(large := np.flatnonzero(numbers >= self.count)):
            numbers[large] = self._once(numbers[large])
        return numbers.astype(np.int64)

    def _once(self, numbers: Words) -> Words:
        """Permute the numbers of all bits: (N,)."""
        high, low = self._bits
        left, right = numbers >> np.uint64(low), numbers & np.uint64((1 << low) - 1)
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & np.uint64((1 << high) - 1))
            high, low = low, high
        return (left << np.uint64(low)) | right


def _mixed(words: Words) -> Words:
    """Mix the bits of words (the finalizer of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def shuffled(count: int, generator: np.random.Generator) -> Array | Permutation:
    """Return the numbers from 0 to `count` - 1 in a random order."""
    if count <= KEPT_UP_TO:
        return generator.permutation(count)
    return Permutation(count, generator.integers(1 << 64, size=ROUNDS, dtype=np.uint64).tolist())
