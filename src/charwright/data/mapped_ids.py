"""Ids in a file that is mapped into memory: parts are read and batches taken, the whole is never resident."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.errors import CorpusError

Ids = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int64]
Range = tuple[int, int]

WIDTHS: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
"""Types of the ids by their bytes; the largest value of each is not an id."""

RELEASE_AFTER = 512
"""Reads after which the pages are given back. A read maps up to 64 KiB around it, so at most 32 MiB stay mapped."""


class MappedFile:
    """A file of ids (N,), mapped into memory, of which few pages are resident at any time."""

    def __init__(self, path: Path, width: int, length: int) -> None:
        """Map a file of `length` ids of `width` bytes.

        Raises:
            OSError: when it cannot be opened.
            ValueError: when it is empty.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._ids = np.frombuffer(self._map, dtype=WIDTHS[width], count=length)
        self._reads = 0

    def read(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Return a copy of the ids from `begin` to `end`."""
        part = self._ids[begin:end].copy()
        self._release(1 + part.nbytes // 65_536)
        return part

    def take(self, positions: Positions, runs: int) -> npt.NDArray[Any]:
        """Return the ids at positions of any shape, which lie in about `runs` different places of the file."""
        taken = self._ids[positions]
        self._release(runs)
        return taken

    def _release(self, reads: int) -> None:
        """Count reads, and unmap the pages from time to time; the system keeps them in its cache as it sees fit."""
        self._reads += reads
        if self._reads >= RELEASE_AFTER:
            self._reads = 0
            if sys.platform != "win32":  # It has no such call.
                self._map.madvise(mmap.MADV_DONTNEED)


def looked_up(table: npt.NDArray[Any], ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the entries of a table by provisional ids, of any shape.

    Raises:
        CorpusError: when the table is too short for them.
    """
    try:
        return np.asarray(table[ids])
    except IndexError as error:
        raise damaged_error() from error


def damaged_error() -> CorpusError:
    """Return the error of ids that no character has."""
    return CorpusError("a prepared text in the cache is damaged; remove it with: charwright cache --clear")


class Ranges:
    """Parts of a file, joined: position i of the text is a position of the file."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        """Join ranges (begin, end) of the file; empty ones are left out."""
        self.ranges = tuple((begin, end) for begin, end in ranges if end > begin)
        lengths = np.array([end - begin for begin, end in self.ranges], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._shifts = np.array([begin for begin, _ in self.ranges], dtype=np.int64) - self._starts[:-1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def positions(self, indices: Positions) -> Positions:
        """Return the positions in the file of indices of the text, of any shape."""
        if len(self.ranges) == 1:
            return np.asarray(indices + self._shifts[0])
        return np.asarray(indices + self._shifts[np.searchsorted(self._starts, indices, side="right") - 1])

    def within(self, begin: int, end: int) -> list[Range]:
        """Return the ranges of the file that the text from `begin` to `end` consists of."""
        found = []
        for (first, last), start in zip(self.ranges, self._starts.tolist(), strict=False):
            low, high = max(first, begin - start + first), min(last, end - start + first)
            if low < high:
                found.append((low, high))
        return found


class MappedIds:
    """The ids of a text under a vocabulary, looked up when they are taken: like an array (N,) int32."""

    def __init__(self, file: MappedFile, table: Ids, ranges: Sequence[Range]) -> None:
        """Take the ids of `ranges` of the file; provisional id i becomes table[i]."""
        self._file, self._table, self._ranges = file, table, Ranges(ranges)
        self.dtype = table.dtype

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, key: slice) -> Ids:
        begin, end, step = key.indices(len(self))
        parts = [looked_up(self._table, self._file.read(*part)) for part in self._ranges.within(begin, end)]
        ids: Ids = np.concatenate(parts) if parts else self._table[:0]
        return ids[::step]

    def take(self, indices: Positions) -> Ids:
        """Return the ids at indices (T, B), of which each column is a passage; the text is a ring."""
        positions = self._ranges.positions(indices % len(self))
        return looked_up(self._table, self._file.take(positions, indices.shape[1]))
