"""Characters to ids and back. Id 0 is [UNK], which stands for every character outside the vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright import notebook
from charwright.config import VocabularyConfig
from charwright.data.code_points import UNICODE_SIZE, IdTable, frequent_characters
from charwright.data.decoders import CharacterDecoder, StreamDecoder
from charwright.data.mapped_text import MappedText
from charwright.errors import VocabularyError

UNKNOWN = "[UNK]"
UNKNOWN_ID = 0

Ids = npt.NDArray[np.int32]


class Vocabulary:
    """[UNK] and the distinct characters of a text, sorted by `from_text`: characters[i] has id i + 1.

    >>> vocabulary = Vocabulary.from_text("banana")
    >>> vocabulary.characters
    'abn'
    >>> vocabulary.encode("bandana").tolist()
    [2, 1, 3, 0, 1, 3, 1]
    """

    level = "character"
    labels: tuple[str, ...] = ()
    """Names of the last ids, which are no characters: `labels.LabelledVocabulary` has them."""

    def __init__(self, characters: str = "") -> None:
        """Take the characters in the order of their ids, starting at id 1.

        Raises:
            VocabularyError: when a character is repeated or is half of a surrogate pair.
        """
        repeated = [character for character, count in Counter(characters).items() if count > 1]
        if repeated:
            raise VocabularyError(f"the vocabulary has {repeated[0]!r} more than once")
        if any("\ud800" <= character <= "\udfff" for character in characters):
            raise VocabularyError("the vocabulary has half of a surrogate pair, which is not a character")
        self.characters = characters
        self.tokens: list[str] = [UNKNOWN, *characters]
        self._table = IdTable(characters)

    @classmethod
    def from_text(cls, text: str | MappedText, config: VocabularyConfig | None = None) -> Vocabulary:
        """Build a vocabulary from the characters that occur at least `min_count` times in a text."""
        return cls().grown(text, config)

    def grown(self, text: str | MappedText, config: VocabularyConfig | None = None) -> Vocabulary:
        """Return a larger vocabulary: the new characters of a text are appended, the existing ids stay.

        The new characters are sorted by code point; `min_count` applies to them only.

        Raises:
            VocabularyError: when `config` has another level.
        """
        config = self._checked_config(config)
        known = set(self.characters)
        frequent = frequent_characters(text, config.min_count)
        return Vocabulary(self.characters + "".join(c for c in frequent if c not in known))

    def encode(self, text: str) -> Ids:
        """Return the ids (N,) int32 of a text; a character outside the vocabulary becomes 0."""
        return self._table.encode(text)

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        """Return the ids of several texts, unpadded."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """Return the text of ids (N,); 0 becomes "[UNK]".

        Raises:
            VocabularyError: when an id is outside the vocabulary, or `ids` is not a 1-D array of integers.
        """
        return "".join([self.tokens[i] for i in self._checked_ids(ids).tolist()])

    def decode_batch(self, batch: Iterable[Sequence[int] | npt.NDArray[Any]]) -> list[str]:
        """Return the texts of several sequences of ids."""
        return [self.decode(ids) for ids in batch]

    def decoder(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return CharacterDecoder(self.tokens)

    def unknown_in(self, text: str) -> list[str]:
        """Return the distinct characters of a text that are not in the vocabulary, in order of appearance."""
        known = set(self.characters)
        return [character for character in dict.fromkeys(text) if character not in known]

    @property
    def unknown_nats(self) -> float:
        """What [UNK] leaves open, in nats: which of all characters outside the vocabulary it is.

        Such a character costs -ln p([UNK]) and this. See docs/explanation/losses.md.
        """
        return math.log(UNICODE_SIZE - 1 - len(self.characters))  # Labels are no characters.

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON, which `vocabulary_from_json` reads."""
        return {"format": 1, "unit": self.level, "characters": self.characters}

    def _checked_config(self, config: VocabularyConfig | None) -> VocabularyConfig:
        config = config or VocabularyConfig(level=self.level)
        if config.level != self.level:
            raise VocabularyError(
                f"the vocabulary is {self.level}-level, not {config.level}-level; its level cannot change"
            )
        return config

    def _checked_ids(self, ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise VocabularyError(f"ids must be a 1-D array of integers, not {array.dtype} of shape {array.shape}")
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            wrong = array[(array < 0) | (array >= len(self))][0]
            raise VocabularyError(f"id {wrong} is outside the vocabulary of {len(self)}")
        return array.astype(np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, text: object) -> bool:
        """Whether all characters of a text are known."""
        return isinstance(text, str) and bool(self.encode(text).all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and (
            (self.level, self.characters, self.labels) == (other.level, other.characters, other.labels)
        )

    def __hash__(self) -> int:
        return hash((self.level, self.characters))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"

    def _repr_html_(self) -> str:
        return notebook.tokens(repr(self), self.tokens)
