"""A text in memory, on disk or in records: its ids, the counts of its ids and its parts are found in one way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from charwright.data.mapped_ids import MappedIds, Range
from charwright.data.mapped_text import MappedText
from charwright.data.records import Records
from charwright.data.vocabulary import Ids, Vocabulary

Text = str | MappedText | Records
AnyIds = Ids | MappedIds

# The ids of the bytes 0 to 255 in a `ByteVocabulary`.
_BYTE_IDS = np.arange(1, 257, dtype=np.int32)


def ids_of(text: Text, vocabulary: Vocabulary) -> AnyIds:
    """Return the ids (N,) of a text, labels included; those of a text on disk stay there."""
    if isinstance(text, str):
        return vocabulary.encode(text)
    if isinstance(text, Records):
        return text.ids(vocabulary)[0]
    if vocabulary.level == "byte" and not text.alphabet.is_ascii:
        return text.byte_ids(_BYTE_IDS)
    return text.ids(vocabulary.encode(text.alphabet.characters))


def id_counts(text: Text, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """Return how often each id of the vocabulary occurs in a text: (V,)."""
    if not isinstance(text, MappedText):
        return np.bincount(ids_of(text, vocabulary)[:], minlength=len(vocabulary))
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    # A character is one id, or several of a byte-level vocabulary.
    for character, count in zip(text.alphabet.characters, text.counts().tolist(), strict=True):
        np.add.at(counts, vocabulary.encode(character), count)
    return counts


def character_counts(text: Text) -> Counter[str]:
    """Return how often each character occurs in a text."""
    if not isinstance(text, MappedText):
        return Counter(in_memory(text))
    found = zip(text.alphabet.characters, text.counts().tolist(), strict=True)
    return Counter({character: count for character, count in found if count})


def joined(text: Text, ranges: Sequence[Range]) -> Text:
    """Return the parts (begin, end) of a text, joined."""
    return text.part(ranges) if isinstance(text, MappedText) else "".join(text[begin:end] for begin, end in ranges)


def in_memory(text: Text) -> str:
    """Return a text as `str`."""
    text = plain(text)
    return text if isinstance(text, str) else text.read()


def plain(text: Text) -> str | MappedText:
    """Return a text without its division into records."""
    return text.text if isinstance(text, Records) else text


def label_names(text: Text) -> list[str]:
    """Return the labels of a text of records, sorted; [] for others."""
    return sorted(set(text.labels or ())) if isinstance(text, Records) else []
