"""Build or read the vocabulary of either level, characters or bytes."""

from __future__ import annotations

from typing import Any

from charwright.config import VocabularyConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.labels import LabelledVocabulary
from charwright.data.texts import Text, label_names, plain
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError, VocabularyError


def make_vocabulary(text: Text, config: VocabularyConfig | None = None) -> Vocabulary:
    """Build the vocabulary that a configuration describes, with the labels of a text of records.

    Raises:
        UsageError: when bytes are to have labels.

    >>> make_vocabulary("banana", VocabularyConfig(level="byte"))
    ByteVocabulary(257 tokens)
    """
    config = VocabularyConfig.of(config, {})
    kind = ByteVocabulary if config.level == "byte" else Vocabulary
    vocabulary = kind.from_text(plain(text), config)
    names = label_names(text)
    if not names:
        return vocabulary
    if vocabulary.level == "byte":
        raise UsageError("labels need a vocabulary of characters: remove --level byte or --label")
    return LabelledVocabulary(vocabulary.characters, names)


def vocabulary_to_train(text: Text, config: VocabularyConfig) -> Vocabulary:
    """The vocabulary of `make_vocabulary`, of which a model can generate something.

    Raises:
        UsageError: when bytes are to have labels, or no character occurs as often as `min_count`.
    """
    vocabulary = make_vocabulary(text, config)
    if len(vocabulary) == 1:
        raise UsageError(f"--min-count {config.min_count:,}: no character of the text occurs so often")
    return vocabulary


def vocabulary_from_json(values: Any) -> Vocabulary:
    """Read the values that `Vocabulary.to_json` returns.

    Raises:
        VocabularyError: when the values are anything else.
    """
    if not isinstance(values, dict) or set(values) - {"labels"} != {"format", "unit", "characters"}:
        raise VocabularyError("a vocabulary must be an object with the keys format, unit and characters")
    if values["format"] != 1:
        raise VocabularyError(f"vocabulary format {values['format']!r} comes from a later version; upgrade charwright")
    if not isinstance(values["characters"], str):
        raise VocabularyError("the vocabulary's key 'characters' must be a string")
    if values["unit"] == "byte":
        if values["characters"] or values.get("labels"):
            raise VocabularyError("the vocabulary's characters and labels must be empty when its unit is byte")
        return ByteVocabulary()
    if values["unit"] != "character":
        raise VocabularyError(f"the vocabulary's unit must be character or byte, not {values['unit']!r}")
    if "labels" not in values:
        return Vocabulary(values["characters"])
    labels = values["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise VocabularyError("the vocabulary's key 'labels' must be a list of strings")
    return LabelledVocabulary(values["characters"], labels)
