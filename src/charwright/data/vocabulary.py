"""Characters to ids and back. Id 0 is [UNK], what stands for every character that is not in the vocabulary."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charwright.config import VocabularyConfig
from charwright.errors import VocabularyError

UNKNOWN = "[UNK]"
UNKNOWN_ID = 0
UNICODE_SIZE = 1_114_112

PART = 1 << 22

Ids = npt.NDArray[np.int32]


class StreamDecoder(Protocol):
    """Turns ids that come one at a time into text."""

    def feed(self, token_id: int) -> str:
        """The text that is complete with this id: a character, or "" inside of one."""

    def feed_all(self, ids: Ids) -> str:
        """The text that is complete with these ids (N,)."""

    def flush(self) -> str:
        """What is left at the end."""


class Vocabulary:
    """The unique characters of a text behind [UNK], sorted by `from_text`: character i has id i + 1.

    >>> vocabulary = Vocabulary.from_text("banana")
    >>> vocabulary.characters
    'abn'
    >>> vocabulary.encode("bandana").tolist()
    [2, 1, 3, 0, 1, 3, 1]
    """

    unit = "character"

    def __init__(self, characters: str) -> None:
        """Take the characters in the order of their ids, from 1 on.

        Raises:
            VocabularyError: when a character stands twice, or is half of a surrogate pair.
        """
        repeated = [character for character, count in Counter(characters).items() if count > 1]
        if repeated:
            raise VocabularyError(f"the vocabulary has {repeated[0]!r} more than once")
        if any("\ud800" <= character <= "\udfff" for character in characters):
            raise VocabularyError("the vocabulary has half of a surrogate pair, which is no character")
        self.characters = characters
        self.tokens: list[str] = [UNKNOWN, *characters]
        codes = np.array([ord(character) for character in characters], dtype=np.int64)
        self._table = np.zeros(int(codes.max(initial=0)) + 2, dtype=np.int32)
        self._table[codes] = np.arange(1, len(characters) + 1, dtype=np.int32)
        # With at most 255 characters, text of one byte a character goes through bytes.translate, the fastest way.
        self._narrow: bytes | None = None
        if len(characters) < 256:
            self._narrow = self._table[:256].astype(np.uint8).tobytes().ljust(256, b"\0")

    @staticmethod
    def from_text(text: str, config: VocabularyConfig | None = None) -> Vocabulary:
        """The vocabulary of a text: its characters that occur `min_count` times or more, or all bytes."""
        config = config or VocabularyConfig()
        if config.unit == "byte":
            return ByteVocabulary()
        return Vocabulary(_frequent(text, config.min_count))

    def grown(self, text: str, config: VocabularyConfig | None = None) -> Vocabulary:
        """A larger vocabulary: the characters of another text behind these, whose ids stay as they are.

        The new ones come in the order of their code points; `min_count` holds for them alone.

        >>> Vocabulary.from_text("banana").grown("a bad coda").characters
        'abn cdo'

        Raises:
            VocabularyError: when the unit is another.
        """
        config = config or VocabularyConfig(unit=self.unit)
        if config.unit != self.unit:
            raise VocabularyError(f"a vocabulary of the unit {self.unit} cannot grow by one of the unit {config.unit}")
        known = set(self.characters)
        return Vocabulary(self.characters + "".join(c for c in _frequent(text, config.min_count) if c not in known))

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and (self.unit, self.characters) == (other.unit, other.characters)

    def __hash__(self) -> int:
        return hash((self.unit, self.characters))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"

    def encode(self, text: str) -> Ids:
        """Ids (N,) int32 of a text; a character outside the vocabulary becomes 0."""
        codes = _code_points(text)
        if self._narrow is not None and codes.dtype == np.uint8:
            return np.frombuffer(codes.tobytes().translate(self._narrow), dtype=np.uint8).astype(np.int32)
        # The last entry of the table is 0, and clipping lets it stand for all the codes behind it.
        return np.take(self._table, codes, mode="clip")

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        """The ids of several texts, each as long as it is."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of ids; 0 becomes "[UNK]".

        Raises:
            VocabularyError: at an id outside the vocabulary, or something that is no row of ids.
        """
        array = self._checked(ids)
        return "".join([self.tokens[i] for i in array.tolist()])

    def decode_batch(self, batch: Iterable[Sequence[int] | npt.NDArray[Any]]) -> list[str]:
        """The texts of several sequences of ids."""
        return [self.decode(ids) for ids in batch]

    def decoder(self) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        return _CharacterDecoder(self.tokens)

    def unknown_in(self, text: str) -> list[str]:
        """The characters of `text` that are not in the vocabulary, each once, in order of appearance."""
        known = set(self.characters)
        return [character for character in dict.fromkeys(text) if character not in known]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"format": 1, "unit": self.unit, "characters": self.characters}

    @staticmethod
    def from_json(values: Any) -> Vocabulary:
        """Read what `to_json` wrote.

        Raises:
            VocabularyError: when it is anything else.
        """
        if not isinstance(values, dict) or set(values) != {"format", "unit", "characters"}:
            raise VocabularyError("a vocabulary is an object with the keys format, unit and characters")
        if values["format"] != 1:
            raise VocabularyError(f"vocabulary format {values['format']!r} comes from a later version")
        if not isinstance(values["characters"], str):
            raise VocabularyError("the vocabulary's key 'characters' must be a string")
        if values["unit"] == "byte":
            if values["characters"]:
                raise VocabularyError("a vocabulary of bytes has no characters")
            return ByteVocabulary()
        if values["unit"] != "character":
            raise VocabularyError(f"the vocabulary's unit must be character or byte, not {values['unit']!r}")
        return Vocabulary(values["characters"])

    def _checked(self, ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise VocabularyError(f"ids are one row of whole numbers, not {array.dtype} of shape {array.shape}")
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            wrong = array[(array < 0) | (array >= len(self))][0]
            raise VocabularyError(f"id {wrong} is outside the vocabulary of {len(self)}")
        return array.astype(np.int64)


class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8 behind [UNK]: byte b has id b + 1, and nothing is ever unknown."""

    unit = "byte"

    def __init__(self) -> None:
        """Take no characters: bytes are always the same."""
        self.characters = ""
        self.tokens = [UNKNOWN, *(f"0x{byte:02x}" for byte in range(256))]

    def encode(self, text: str) -> Ids:
        """Ids (N,) int32 of the text's UTF-8 bytes, N being how many there are."""
        data = text.encode("utf-8", "surrogatepass")
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32) + np.int32(1)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of ids; what is no UTF-8, and [UNK], becomes U+FFFD."""
        decoder = self.decoder()
        return "".join([decoder.feed(i) for i in self._checked(ids).tolist()]) + decoder.flush()

    def grown(self, text: str, config: VocabularyConfig | None = None) -> Vocabulary:  # noqa: ARG002
        """Bytes are all there already.

        Raises:
            VocabularyError: when the unit is another.
        """
        if config is not None and config.unit != self.unit:
            raise VocabularyError(f"a vocabulary of the unit {self.unit} cannot grow by one of the unit {config.unit}")
        return self

    def decoder(self) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        return _ByteDecoder()

    def unknown_in(self, text: str) -> list[str]:  # noqa: ARG002
        """Nothing is unknown to bytes."""
        return []


class _CharacterDecoder:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens

    def feed(self, token_id: int) -> str:
        return self._tokens[token_id]

    def feed_all(self, ids: Ids) -> str:
        return "".join([self._tokens[i] for i in ids.tolist()])

    def flush(self) -> str:
        return ""


class _ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        # 0xff is no part of any UTF-8, so that [UNK] shows as U+FFFD like every other broken byte.
        return self._decoder.decode(bytes([token_id - 1 if token_id else 0xFF]))

    def feed_all(self, ids: Ids) -> str:
        return self._decoder.decode(np.where(ids > 0, ids - 1, 0xFF).astype(np.uint8).tobytes())

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def _frequent(text: str, min_count: int) -> str:
    """The characters that occur so often or more, in the order of their code points."""
    codes = np.flatnonzero(_counts(text) >= min_count)
    return "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)


def _counts(text: str) -> npt.NDArray[np.int64]:
    """How often each code point occurs: element c for chr(c)."""
    counts = np.zeros(0, dtype=np.int64)
    for begin in range(0, len(text), PART):  # bincount widens its input to 8 bytes each, so it gets parts.
        part = np.bincount(_code_points(text[begin : begin + PART]), minlength=len(counts))
        part[: len(counts)] += counts
        counts = part
    return counts


def _code_points(text: str) -> npt.NDArray[Any]:
    """The code points of a text, as narrow as they fit: uint8, uint16 or uint32."""
    try:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    except UnicodeEncodeError:
        pass
    encoded = text.encode("utf-16-le", "surrogatepass")
    if len(encoded) == 2 * len(text):  # No surrogate pairs: each character is one unit.
        return np.frombuffer(encoded, dtype="<u2")
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
