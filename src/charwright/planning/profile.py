"""What a plan needs to know about a text: its size, vocabulary and script, and how much it repeats itself."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass

from charwright.data.records import Records
from charwright.data.texts import Text, ids_of
from charwright.data.vocabulary import Vocabulary
from charwright.planning.repetition import TYPICAL, repetition


@dataclass(frozen=True)
class TextProfile:
    """The size of a training text in characters and in token ids, the size of its vocabulary, and its script.

    A byte-level vocabulary has more token ids than characters. `records` is their number, if it is a list of records.
    `beside` are the tokens that are read with it: what teachers write, and the text again among that. The predictions
    of the teachers take as long as training on `once` tokens. `repetition` is the share of its passages that occur in
    it again, of a list that of any text. `teaches` says that the model will be one of several that teach another.
    """

    characters: int
    vocabulary: int
    script: str
    tokens: int
    records: int = 0
    beside: int = 0
    once: int = 0
    repetition: float = TYPICAL
    teaches: bool = False

    @property
    def alone(self) -> bool:
        """Whether the model neither teaches others nor has teachers."""
        return not (self.teaches or self.beside or self.once)

    @property
    def read(self) -> int:
        """The tokens of one pass."""
        return self.tokens + self.beside

    @classmethod
    def of(cls, training_text: Text, vocabulary: Vocabulary) -> TextProfile:
        """Measure a text."""
        tokens = len(ids_of(training_text, vocabulary))
        script = script_of(training_text)
        if isinstance(training_text, Records):
            return cls(len(training_text), len(vocabulary), script, tokens, training_text.count)
        return cls(len(training_text), len(vocabulary), script, tokens, repetition=repetition(training_text))


def script_of(text: Text) -> str:
    """The script of most letters, as Unicode names it: Latin, Cyrillic, CJK, ..."""
    sampled = text[:: max(1, len(text) // 20_000)]
    names = Counter(unicodedata.name(c, "unknown").split()[0] for c in sampled if c.isalpha())
    if not names:
        return "no letters"
    [(name, _)] = names.most_common(1)
    return name if name == "CJK" else name.capitalize()
