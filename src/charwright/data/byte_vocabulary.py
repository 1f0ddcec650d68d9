"""A vocabulary of bytes: 257 tokens cover every script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import VocabularyConfig
from charwright.data.decoders import ByteDecoder, StreamDecoder
from charwright.data.mapped_text import MappedText
from charwright.data.vocabulary import UNKNOWN, Ids, Vocabulary


class ByteVocabulary(Vocabulary):
    """[UNK] and the 256 bytes of UTF-8: byte b has id b + 1, and no character is unknown."""

    level = "byte"

    def __init__(self) -> None:
        """Every byte vocabulary has the same tokens."""
        self.characters = ""
        self.tokens = [UNKNOWN, *(f"0x{byte:02x}" for byte in range(256))]

    def grown(self, text: str | MappedText, config: VocabularyConfig | None = None) -> Vocabulary:  # noqa: ARG002
        """Return this vocabulary, which already has every byte.

        Raises:
            VocabularyError: when `config` has another level.
        """
        self._checked_config(config)
        return self

    def encode(self, text: str) -> Ids:
        """Return the ids (N,) int32 of the N bytes of a text in UTF-8."""
        data = text.encode("utf-8", "surrogatepass")
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32) + np.int32(1)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """Return the text of ids (N,); invalid UTF-8 and [UNK] become U+FFFD."""
        decoder = self.decoder()
        return "".join([decoder.feed(i) for i in self._checked_ids(ids).tolist()]) + decoder.flush()

    def decoder(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return ByteDecoder()

    def unknown_in(self, text: str) -> list[str]:  # noqa: ARG002
        """Return []: bytes cover every character."""
        return []
