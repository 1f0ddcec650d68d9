"""Text as arrays of code points: counting characters and looking up their ids at array speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.arguments import require
from charwright.data.mapped_text import MappedText

UNICODE_SIZE = 1_114_112
"""The number of code points in Unicode."""

CHUNK = 1 << 22


class IdTable:
    """A table from code point to id: characters[i] has id i + 1, every other code point 0."""

    def __init__(self, characters: str) -> None:
        """Build the table; `characters` must be distinct."""
        codes = np.array([ord(character) for character in characters], dtype=np.int64)
        self._ids = np.zeros(int(codes.max(initial=0)) + 2, dtype=np.int32)
        self._ids[codes] = np.arange(1, len(characters) + 1, dtype=np.int32)
        # With at most 255 characters every id fits in a byte, and bytes.translate is the fastest lookup.
        self._byte_ids: bytes | None = None
        if len(characters) < 256:
            self._byte_ids = self._ids[:256].astype(np.uint8).tobytes().ljust(256, b"\0")

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids (N,) of the characters of a text."""
        codes = code_points(text)
        if self._byte_ids is not None and codes.dtype == np.uint8:
            return np.frombuffer(codes.tobytes().translate(self._byte_ids), dtype=np.uint8).astype(np.int32)
        # The last entry of the table is 0; clipping maps every larger code point to it.
        return np.take(self._ids, codes, mode="clip")


def code_points(text: str) -> npt.NDArray[Any]:
    """Return the code points of a text in the narrowest type that holds them: uint8, uint16 or uint32."""
    require(text, str, "a text is a str", "several are encoded by encode_batch")
    try:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    except UnicodeEncodeError:
        pass
    encoded = text.encode("utf-16-le", "surrogatepass")
    if len(encoded) == 2 * len(text):  # No surrogate pairs: one 16-bit unit per character.
        return np.frombuffer(encoded, dtype="<u2")
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def utf8_sizes(text: str) -> npt.NDArray[np.int64]:
    """Return how many bytes each character (N,) of a text has in UTF-8."""
    codes = code_points(text)
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)


def frequent_characters(text: str | MappedText, min_count: int) -> str:
    """Return the characters that occur at least `min_count` times, sorted by code point, without lone surrogates."""
    require(text, (str, MappedText), "a text is a str", "pass its text" if hasattr(text, "text") else "")
    counts = _count(text) if isinstance(text, str) else text.alphabet.by_code_point()
    codes = np.flatnonzero(counts >= max(1, min_count))
    return "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)


def _count(text: str) -> npt.NDArray[np.int64]:
    """Count the occurrences of each code point: element c for chr(c)."""
    counts = np.zeros(0, dtype=np.int64)
    for begin in range(0, len(text), CHUNK):  # bincount widens its input to 8 bytes per character.
        chunk = np.bincount(code_points(text[begin : begin + CHUNK]), minlength=len(counts))
        chunk[: len(counts)] += counts
        counts = chunk
    return counts
