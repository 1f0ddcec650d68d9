"""A text on disk, one id per character: sliced, counted and encoded without being read as a whole.

The ids are provisional: characters are numbered in order of first appearance, so that the same file serves every
vocabulary. A run's own ids come from a table, which is applied to what is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charwright.data.mapped_ids import (
    RELEASE_AFTER,
    Ids,
    MappedFile,
    MappedIds,
    Range,
    Ranges,
    damaged_error,
    looked_up,
)

PIECE = 1 << 22
"""Characters that are read at a time."""


class Alphabet:
    """The distinct characters of a text in order of first appearance, and how often each occurs."""

    def __init__(self, characters: str, counts: Sequence[int]) -> None:
        """Take the characters by provisional id, and their counts."""
        self.characters = characters
        self.counts = np.array(counts, dtype=np.int64)
        self.codes = np.array([ord(character) for character in characters], dtype="<u4")
        self.utf8_lengths = np.array([len(character.encode("utf-8")) for character in characters], dtype=np.int64)

    @property
    def is_ascii(self) -> bool:
        """Whether a character is a byte of UTF-8."""
        return self.characters.isascii()

    def decode(self, ids: npt.NDArray[Any]) -> str:
        """Return the text of provisional ids (N,)."""
        return looked_up(self.codes, ids).tobytes().decode("utf-32-le")

    def by_code_point(self) -> npt.NDArray[np.int64]:
        """Return the count of each code point: element c for chr(c)."""
        counts = np.zeros(int(self.codes.max(initial=0)) + 1, dtype=np.int64)
        counts[self.codes] = self.counts
        return counts


class BytesOnDisk(Protocol):
    """The UTF-8 of a text as a file, for byte-level vocabularies."""

    @property
    def file(self) -> MappedFile:
        """The bytes."""

    def offset(self, character: int) -> int:
        """Return where in the file a character of the text begins."""


class MappedText:
    """A text like `str`, of which slices are read from disk; equal slices of both are equal.

    >>> text[:20], len(text)    # doctest: +SKIP
    """

    def __init__(self, file: MappedFile, alphabet: Alphabet, length: int, utf8: Callable[[], BytesOnDisk]) -> None:
        """Take the whole of a file of `length` provisional ids; `utf8` is called for a byte-level vocabulary."""
        self._file, self._utf8 = file, utf8
        self.alphabet, self._whole = alphabet, length
        self._ranges = Ranges([(0, length)])

    def part(self, ranges: Sequence[Range]) -> MappedText:
        """Return the ranges (begin, end) of this text, joined, without copying them."""
        part = MappedText(self._file, self.alphabet, self._whole, self._utf8)
        part._ranges = Ranges([found for begin, end in ranges for found in self._ranges.within(begin, end)])
        return part

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, key: slice) -> str:
        begin, end, step = key.indices(len(self))
        if step == 1:
            return "".join(self.alphabet.decode(self._file.read(*part)) for part in self._ranges.within(begin, end))
        indices = self._ranges.positions(np.arange(begin, end, step, dtype=np.int64))
        # Each character lies in another place; as many at a time as are released together.
        parts = [indices[at : at + RELEASE_AFTER] for at in range(0, len(indices), RELEASE_AFTER)]
        return "".join(self.alphabet.decode(self._file.take(part, len(part))) for part in parts)

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, a few million characters at a time."""
        for begin in range(0, len(self), PIECE):
            yield self[begin : begin + PIECE]

    def read(self) -> str:
        """Return the whole text as `str`, which takes one to four bytes of memory per character."""
        return self[:]

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how often each character of the alphabet occurs in this part: (A,)."""
        left_out = [(end, begin) for (_, end), (begin, _) in pairwise([(0, 0), *self._ranges.ranges, (self._whole, 0)])]
        if sum(end - begin for begin, end in left_out) < len(self):  # Counting the rest is less work.
            return self.alphabet.counts - self._counted(left_out)
        return self._counted(self._ranges.ranges)

    def ids(self, table: Ids) -> MappedIds:
        """Return the ids (N,) under a vocabulary: `table` (A,) has its id of each character of the alphabet."""
        return MappedIds(self._file, table, self._ranges.ranges)

    def byte_ids(self, table: Ids) -> MappedIds:
        """Return the ids of the bytes of the text in UTF-8: `table` (256,) has the id of each byte."""
        utf8 = self._utf8()
        return MappedIds(
            utf8.file, table, [(utf8.offset(begin), utf8.offset(end)) for begin, end in self._ranges.ranges]
        )

    def _counted(self, ranges: Sequence[Range]) -> npt.NDArray[np.int64]:
        counts = np.zeros(len(self.alphabet.counts), dtype=np.int64)
        for first, last in ranges:
            for begin in range(first, last, PIECE):
                found = np.bincount(self._file.read(begin, min(last, begin + PIECE)), minlength=len(counts))
                if len(found) > len(counts):
                    raise damaged_error()
                counts += found
        return counts
