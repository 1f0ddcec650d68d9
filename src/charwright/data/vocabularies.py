"""Build or read the vocabulary of either level, characters or bytes."""

from __future__ import annotations

from typing import Any

from charwright.config import VocabularyConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.mapped_text import MappedText
from charwright.data.vocabulary import Vocabulary
from charwright.errors import VocabularyError


def make_vocabulary(text: str | MappedText, config: VocabularyConfig) -> Vocabulary:
    """Build the vocabulary that a configuration describes.

    >>> make_vocabulary("banana", VocabularyConfig(level="byte"))
    ByteVocabulary(257 tokens)
    """
    kind = ByteVocabulary if config.level == "byte" else Vocabulary
    return kind.from_text(text, config)


def vocabulary_from_json(values: Any) -> Vocabulary:
    """Read the values that `Vocabulary.to_json` returns.

    Raises:
        VocabularyError: when the values are anything else.
    """
    if not isinstance(values, dict) or set(values) != {"format", "unit", "characters"}:
        raise VocabularyError("a vocabulary must be an object with the keys format, unit and characters")
    if values["format"] != 1:
        raise VocabularyError(f"vocabulary format {values['format']!r} comes from a later version; upgrade charwright")
    if not isinstance(values["characters"], str):
        raise VocabularyError("the vocabulary's key 'characters' must be a string")
    if values["unit"] == "byte":
        if values["characters"]:
            raise VocabularyError("the vocabulary's key 'characters' must be empty when its unit is byte")
        return ByteVocabulary()
    if values["unit"] != "character":
        raise VocabularyError(f"the vocabulary's unit must be character or byte, not {values['unit']!r}")
    return Vocabulary(values["characters"])
