"""Cut a text that arrives in pieces into records: lines, paragraphs, files, characters, or what a separator ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charwright.data.code_points import code_points
from charwright.data.records import BLANK_LINES, BLANKS
from charwright.errors import UsageError

Ints = npt.NDArray[np.int64]

KINDS = ("line", "blank", "file", "character")
"""What a record may be; `blank` ends records at blank lines: those of spaces and tabs, or of nothing."""

MOST_CHARACTERS = 1 << 20
"""Characters of a segment; longer pieces are divided."""


@dataclass(frozen=True)
class Segment:
    """A piece of one file, and the ends (N,) of records in it, as positions from 1 to its length.

    If it is the `first` of its file, a record begins with it, whatever came before.
    """

    file: str
    text: str
    ends: Ints
    first: bool = False

    def divided(self, at: int) -> tuple[Segment, Segment]:
        """The segment in two, at a position."""
        here = int(np.searchsorted(self.ends, at, side="right"))
        return (
            Segment(self.file, self.text[:at], self.ends[:here], self.first),
            Segment(self.file, self.text[at:], self.ends[here:] - at),
        )


@dataclass(frozen=True)
class Cutter:
    """Finds where records end. A record includes what ends it, so that the records are the whole text.

    `by` is one of `KINDS`. A `separator` ends records instead; empty ones between separators count.

    Raises:
        UsageError: when there is no such kind, or the separator is empty.
    """

    by: str = "line"
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.by not in KINDS:
            raise UsageError(f"--by must be one of {', '.join(KINDS)}, not {self.by!r}")
        if self.separator == "":
            raise UsageError("--separator must have at least one character")

    def segments(self, pieces: Iterable[tuple[str, str]]) -> Iterator[Segment]:
        """Yield the segments of (file, piece of its text) in order; what ends a record is never divided.

        A file begins where the name changes, and with an empty piece.
        """
        current, held, first = "", "", True
        for file, text in pieces:
            if file != current or not text:
                yield from self._segments(current, held, first)
                current, held, first = file, "", True
            for part in _divided(text):
                whole = held + part
                done = len(whole) - self._unfinished(whole)
                held = whole[done:]
                yield from self._segments(file, whole[:done], first)
                first = first and not done
        yield from self._segments(current, held, first)

    def stripped(self, text: str) -> str:
        """A record without what ends it."""
        if self.separator is not None:
            return text.removesuffix(self.separator)
        if self.by == "blank":
            bare = text.rstrip(BLANKS + "\r\n")
            return bare + re.split(r"[\r\n]", text[len(bare) :], maxsplit=1)[0]
        return text.rstrip("\r\n") if self.by == "line" else text

    def _segments(self, file: str, text: str, first: bool) -> Iterator[Segment]:
        if text:
            yield Segment(file, text, self._ends(text), first)

    def _ends(self, text: str) -> Ints:
        """The positions after the ends of records."""
        if self.separator is not None:
            found = re.finditer(re.escape(self.separator), text)
        elif self.by == "line":
            return newlines(text) + 1
        elif self.by == "blank":
            found = BLANK_LINES.finditer(text)
        elif self.by == "character":
            return np.arange(1, len(text) + 1)
        else:
            return np.zeros(0, dtype=np.int64)
        return np.fromiter((match.end() for match in found), dtype=np.int64)

    def _unfinished(self, text: str) -> int:
        """How many characters at the end may belong to the end of a record that goes on in the next piece."""
        if self.separator is not None:
            longest = min(len(self.separator) - 1, len(text))
            # Of a separator such as `---`, only what follows its last whole occurrence is open.
            begin = max((match.end() for match in re.finditer(re.escape(self.separator), text)), default=0)
            sizes = range(min(longest, len(text) - begin), 0, -1)
            return next((size for size in sizes if self.separator.startswith(text[-size:])), 0)
        if self.by == "blank":
            begin = text.find("\n", len(text.rstrip(BLANKS + "\r\n")))
            return len(text) - begin if begin >= 0 else 0
        return 0


def newlines(text: str) -> Ints:
    """The positions (N,) of the newlines in a text."""
    return np.flatnonzero(code_points(text) == ord("\n"))


def _divided(text: str) -> Iterator[str]:
    for begin in range(0, len(text), MOST_CHARACTERS):
        yield text[begin : begin + MOST_CHARACTERS]
