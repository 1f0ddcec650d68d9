"""A vocabulary with labels: ids that are no characters, and come before a record to say of which kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from charwright.config import VocabularyConfig
from charwright.data.mapped_text import MappedText
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError, VocabularyError

SHOWN = 20
"""Labels listed in a message, at most."""


class LabelledVocabulary(Vocabulary):
    """A vocabulary of characters whose last ids are labels. `encode` never returns them; `decode` gives "[label]".

    >>> vocabulary = LabelledVocabulary("abn", ["fruit", "tool"])
    >>> vocabulary.decode([4, 2, 1])
    '[fruit]ba'
    """

    def __init__(self, characters: str, labels: Sequence[str]) -> None:
        """Take the characters and the labels, both in the order of their ids.

        Raises:
            VocabularyError: when one is repeated, a label is empty, or a character is half of a surrogate pair.
        """
        super().__init__(characters)
        if len(set(labels)) < len(labels) or "" in labels:
            raise VocabularyError("the labels of a vocabulary must be distinct and not empty")
        self.labels = tuple(labels)
        self.tokens = [*self.tokens, *(f"[{label}]" for label in labels)]

    def grown(self, text: str | MappedText, config: VocabularyConfig | None = None) -> Vocabulary:
        """Return this vocabulary, if it has all characters of a text: new ones would move the labels.

        Raises:
            VocabularyError: when there is a new character, or `config` has another level.
        """
        larger = super().grown(text, config)
        if added := larger.characters[len(self.characters) :]:
            raise VocabularyError(
                f"the text has the new character {added[0]!r}, and a vocabulary with labels cannot grow: start a new "
                "run"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON, which `vocabulary_from_json` reads."""
        return {**super().to_json(), "labels": list(self.labels)}


def label_ids(vocabulary: Vocabulary) -> range:
    """Return the ids of the labels; empty for most vocabularies."""
    return range(len(vocabulary) - len(vocabulary.labels), len(vocabulary))


def label_id(vocabulary: Vocabulary, label: str) -> int:
    """Return the id of a label.

    Raises:
        UsageError: naming the labels that there are.
    """
    if label not in vocabulary.labels:
        raise UsageError(f"there is no label {label!r}; the model has {listed_labels(vocabulary)}")
    return label_ids(vocabulary)[vocabulary.labels.index(label)]


def listed_labels(vocabulary: Vocabulary) -> str:
    """Return the labels for a message, at most `SHOWN` of them."""
    more = " ..." if len(vocabulary.labels) > SHOWN else ""
    return ", ".join(vocabulary.labels[:SHOWN]) + more if vocabulary.labels else "no labels"
