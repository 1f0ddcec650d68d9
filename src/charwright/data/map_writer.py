"""Write a text as provisional ids: each character is numbered when it first appears, and counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from charwright.data.code_points import UNICODE_SIZE, code_points
from charwright.data.mapped_ids import WIDTHS

COUNTED = 1 << 17
"""Ids that are looked up or counted at a time: both widen them to 8 bytes, which should stay in the cache."""

PAIRED_FROM = 1 << 16
"""From this many ids on, bytes are counted in pairs."""

COPIED = 1 << 22


class MapWriter:
    """A file of ids, which grows by pieces of text; its ids become wider when the alphabet needs it."""

    def __init__(self, path: Path) -> None:
        """Create the file.

        Raises:
            OSError: when it cannot be created.
        """
        self.path, self.width, self.length = path, 1, 0
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._flushing = Lock()  # The file is opened anew when its ids become wider.
        self._characters: list[str] = []
        self._counts = np.zeros(0, dtype=np.int64)
        self._table: npt.NDArray[Any] = np.full(UNICODE_SIZE, self._unseen, dtype=WIDTHS[1])

    @property
    def _unseen(self) -> int:
        """The value in the table of a character that has no id yet."""
        return int(np.iinfo(WIDTHS[self.width]).max)

    @property
    def characters(self) -> str:
        """The characters so far, by id."""
        return "".join(self._characters)

    @property
    def counts(self) -> list[int]:
        """How often each character occurs, by id."""
        counts: list[int] = self._counts[: len(self._characters)].tolist()
        return counts

    def ids(self, text: str | bytes) -> npt.NDArray[Any]:
        """Number the characters of a piece of text, or ASCII bytes; the ids are to be written and counted."""
        codes: npt.NDArray[Any] = np.frombuffer(text, dtype=np.uint8) if isinstance(text, bytes) else code_points(text)
        ids = self._looked_up(text, codes)
        if len(ids) and int(ids.max()) == self._unseen:
            self._number(codes[ids == self._unseen])
            ids = self._looked_up(text, codes)
        self.length += len(ids)
        return ids

    def write(self, ids: npt.NDArray[Any]) -> None:
        """Append ids to the file.

        Raises:
            OSError: when the system refuses, as when the disk is full.
        """
        _write_all(self._file, ids.astype(WIDTHS[self.width], copy=False))

    def flush(self) -> None:
        """Write all ids so far to the disk; another thread may do it while this one goes on.

        Raises:
            OSError: when the system refuses.
        """
        with self._flushing:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _looked_up(self, text: str | bytes, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if codes.dtype == np.uint8 and self.width == 1:  # bytes.translate is the fastest lookup.
            narrow = text if isinstance(text, bytes) else codes.tobytes()
            return np.frombuffer(narrow.translate(self._table[:256].tobytes()), dtype=np.uint8)
        ids = np.empty(len(codes), dtype=self._table.dtype)
        for begin in range(0, len(codes), COUNTED):  # The table has all code points, so nothing is clipped.
            some = slice(begin, begin + COUNTED)
            np.take(self._table, codes[some], out=ids[some], mode="clip")
        return ids

    def _number(self, codes: npt.NDArray[Any]) -> None:
        """Number the code points (N,), in order of first appearance."""
        found, first = np.unique(codes, return_index=True)
        fresh = found[np.argsort(first)]
        known = len(self._characters)
        while known + len(fresh) > self._unseen:
            self._widen()
        self._table[fresh] = np.arange(known, known + len(fresh), dtype=self._table.dtype)
        self._characters.extend(map(chr, fresh.tolist()))

    def count(self, ids: npt.NDArray[Any]) -> None:
        """Count ids; another thread may do it, one call after the other."""
        for begin in range(0, len(ids), COUNTED):
            counts = _counted(ids[begin : begin + COUNTED])
            if len(counts) > len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros(len(counts) - len(self._counts), dtype=np.int64)])
            self._counts[: len(counts)] += counts

    def _widen(self) -> None:
        """Rewrite the file with ids of twice the bytes."""
        old, unseen = WIDTHS[self.width], self._unseen
        self.width *= 2
        table = np.full(UNICODE_SIZE, self._unseen, dtype=WIDTHS[self.width])
        seen = self._table != unseen
        table[seen] = self._table[seen]
        self._table = table
        narrow = self.path.with_suffix(".narrow")
        with self._flushing:
            self._file.close()
            self.path.rename(narrow)
            self._file = self.path.open("wb", buffering=0)
        with narrow.open("rb", buffering=0) as file:
            for data in _blocks(file):
                _write_all(self._file, np.frombuffer(data, dtype=old).astype(WIDTHS[self.width]))
        narrow.unlink()


def _counted(ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return how often each id occurs. Bytes are counted in pairs, which is twice as fast."""
    if ids.dtype != np.uint8 or len(ids) % 2 or len(ids) < PAIRED_FROM:
        return np.bincount(ids)
    pairs = np.bincount(ids.view(np.uint16), minlength=65_536).reshape(256, 256)
    return np.asarray(pairs.sum(axis=0) + pairs.sum(axis=1), dtype=np.int64)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(COPIED):
        yield data


def _write_all(file: BinaryIO, ids: npt.NDArray[Any]) -> None:
    """Write an array; an unbuffered file may take only a part at a time."""
    left = np.ascontiguousarray(ids).view(np.uint8).data
    while left:
        left = left[file.write(left) :]
