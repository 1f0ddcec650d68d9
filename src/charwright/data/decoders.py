"""Stream decoders: token ids that arrive one at a time become text."""

from __future__ import annotations

import codecs
from typing import Protocol

import numpy as np
import numpy.typing as npt


class StreamDecoder(Protocol):
    """Decodes ids that arrive one at a time."""

    def feed(self, token_id: int) -> str:
        """Return the text that this id completes, "" inside a character."""

    def feed_all(self, ids: npt.NDArray[np.int32]) -> str:
        """Return the text that these ids (N,) complete."""

    def flush(self) -> str:
        """Return what is left at the end."""


class CharacterDecoder:
    """Decodes ids that are characters."""

    def __init__(self, tokens: list[str]) -> None:
        """Take the text of each id."""
        self._tokens = tokens

    def feed(self, token_id: int) -> str:
        """Return the character of an id."""
        return self._tokens[token_id]

    def feed_all(self, ids: npt.NDArray[np.int32]) -> str:
        """Return the characters of ids (N,)."""
        return "".join([self._tokens[i] for i in ids.tolist()])

    def flush(self) -> str:
        """Return "": every character is already complete."""
        return ""


class ByteDecoder:
    """Decodes ids that are bytes of UTF-8 plus 1; invalid bytes and [UNK] become U+FFFD."""

    def __init__(self) -> None:
        """Start between two characters."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """Return the character that this byte completes, or ""."""
        # 0xff never occurs in UTF-8, so [UNK] becomes U+FFFD like any other invalid byte.
        return self._decoder.decode(bytes([token_id - 1 if token_id else 0xFF]))

    def feed_all(self, ids: npt.NDArray[np.int32]) -> str:
        """Return the characters that these bytes complete."""
        return self._decoder.decode(np.where(ids > 0, ids - 1, 0xFF).astype(np.uint8).tobytes())

    def flush(self) -> str:
        """Return U+FFFD for an incomplete character, else ""."""
        return self._decoder.decode(b"", final=True)
