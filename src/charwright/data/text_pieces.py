"""A text of any length in pieces: the parts of a corpus, decoded one after the other, and never kept."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any, BinaryIO, cast

from charwright.config import CorpusConfig
from charwright.data.decoding import REPLACEMENT, canonical_encoding, decode, has_many_nuls
from charwright.data.parts import Part, Places, Tally, find_parts
from charwright.data.pieces import PIECE_BYTES, UNDIVIDED, Piece, TextStream
from charwright.errors import CorpusError

Count = Callable[[int], None]

STREAMED_BYTES = 1 << 20
"""Bytes of a piece that is used at once."""


def pieces_of(part: Part, piece_bytes: int = PIECE_BYTES, count: Count | None = None) -> Iterator[Piece]:
    """Decode a part in pieces; `count` is called with the number of each bytes that are read.

    Raises:
        CorpusError: (or a subclass) when the part cannot be read or decoded.
    """
    try:
        with part.stream(count) as stream:
            yield from TextStream(stream, part.where, part.stream, piece_bytes).pieces(part.config)
    except OSError as error:
        raise unreadable(part, error) from error


def is_binary(part: Part, piece_bytes: int = PIECE_BYTES) -> bool:
    """Whether a part has NUL bytes where text has none, as `looks_binary` says.

    Raises:
        CorpusError: when the part cannot be read.
    """
    head, nuls, size = b"", 0, 0
    with part.stream() as stream:
        try:
            while data := stream.read(piece_bytes):
                head = (head + data[:4])[:4]  # A byte order mark may be there.
                nuls, size = nuls + data.count(0), size + len(data)
                if nuls and part.config.errors != "replace":
                    break
        except OSError as error:
            raise unreadable(part, error) from error
    return has_many_nuls(head, nuls, size, part.config)


def unreadable(part: Part, error: OSError) -> CorpusError:
    """The error of a part that the system does not read."""
    return CorpusError(f"cannot read {part.where}: {error.strerror or error}")


@dataclass(frozen=True)
class Streamed:
    """The parts of a corpus, each in pieces. Joined, the pieces are the text that `read_corpus` returns.

    `notes` are notices for the user, to be read after the last piece.
    """

    parts: Sequence[Part]
    notes: list[str]

    @classmethod
    def find(cls, specs: Sequence[str], config: CorpusConfig, places: Places) -> Streamed:
        """Find what the arguments name, as `read_corpus` does; nothing is read yet.

        Raises:
            CorpusError: (or a subclass) when a part cannot be found or downloaded.
        """
        notes: list[str] = []
        return cls(find_parts(specs, config, places, notes), notes)

    @property
    def size(self) -> int | None:
        """The bytes to read, or None if that is not known."""
        sizes = [part.size for part in self.parts if part.kind != "stdin"]
        return sum(sizes) if len(sizes) == len(self.parts) else None

    def pieces(self, count: Count | None = None) -> Iterator[tuple[str, str]]:
        """Yield (location of the part, piece of its text); those of standard input, `-`, as they arrive.

        An empty piece begins each part. A newline comes between parts where one is missing, as the end of the former.

        Raises:
            CorpusError: (or a subclass) when a part cannot be read or decoded.
        """
        tally, before, ended = Tally(self.parts), "", True
        for part in self.parts:
            if part.folder is not None and is_binary(part):
                tally.skipped(part)
                continue
            found, name = False, "-" if part.kind == "stdin" else part.location
            for text in _texts(part, count):
                if not found:
                    if not ended:
                        yield before, "\n"
                    yield name, ""
                found, before, ended = True, name, text.endswith("\n")
                tally.replaced(text.count(REPLACEMENT))
                yield name, text
            if found:
                tally.found(part)
        self.notes.extend(tally.notes())


def _texts(part: Part, count: Count | None) -> Iterator[str]:
    if canonical_encoding(part.config.encoding) in UNDIVIDED:
        if text := decode(part.read(), part.config, part.where):
            yield text
        return
    if part.kind == "stdin":
        # There is nothing to read again, so messages are worked out from the piece that they are about.
        openings = chain([_Arriving(part.opener())], repeat(io.BytesIO()))
        part = replace(part, opener=lambda: cast(BinaryIO, next(openings)))
    for piece in pieces_of(part, STREAMED_BYTES, count):
        yield piece.utf8.decode("ascii") if piece.text is None else piece.text


class _Arriving(io.RawIOBase):
    """Standard input, of which a read returns what has arrived. It stays open."""

    def __init__(self, stdin: Any) -> None:
        self._read = getattr(stdin, "read1", stdin.read)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return bytes(self._read(size))
