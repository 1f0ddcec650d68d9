"""How much of a text is copied verbatim from the corpus, and a guard that limits copying.

`measure_novelty` names the substrings of the text, of 1, 2, 4, ... characters (Karp, Miller and Rosenberg, 1972), and
finds them in the corpus. A suffix array would sort the whole corpus for a page of text and needs a compiled library;
fingerprints would have to be verified against the text, whereas names are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.data.mapped_ids import MappedIds
from charwright.data.mapped_text import MappedText
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, CorpusError, VocabularyError
from charwright.processes import memory_bytes

Ids = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]

SEARCHED = 1 << 24  # characters of a corpus on disk at a time
INDEX_BYTES = 17  # per character, while the index is made
PART = 1 << 16  # positions of the corpus at a time: intermediate results then stay in the processor's cache


@dataclass(frozen=True)
class Novelty:
    """How much of a text is copied.

    `longest` is the longest passage of the text that is also in the corpus (the first of equals), and `longest_at` its
    position in the text. `copied_chars` counts the characters inside copied passages of at least `shortest` characters.
    """

    characters: int
    longest: str
    longest_at: int
    copied_chars: int
    shortest: int

    @property
    def copied_share(self) -> float:
        """The copied share of the text, from 0 to 1."""
        return self.copied_chars / self.characters if self.characters else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "copied_share": self.copied_share}


def measure_novelty(corpus: str | MappedText, written: str, shortest: int = 20, *, searched: int = SEARCHED) -> Novelty:
    """Find the passages of `written` that are copied verbatim from `corpus`.

    The result is exact; a lone surrogate is not a character, and equals nothing. It takes eight bytes of memory per
    character of a corpus in memory, and is intended for a `written` that is much shorter. A corpus on disk is searched
    in pieces of `searched` characters or more, which overlap by the length of `written`.

    Raises:
        ConfigError: if `shortest` is less than 1.
    """
    if shortest < 1:
        raise ConfigError(f"the shortest copied passage must be at least 1, not {shortest}")
    found = [_search(part, written, shortest) for part in _overlapping(corpus, max(searched, len(written)), written)]
    copied = np.logical_or.reduce([part.copied for part in found])
    longest = max(found, key=lambda part: (part.length, -part.begin))
    passage = written[longest.begin : longest.begin + longest.length]
    return Novelty(len(written), passage, longest.begin, int(copied.sum()), shortest)


@dataclass(frozen=True)
class _Found:
    """What a part of the corpus has of a text: which of its characters (M,), and the first longest passage."""

    copied: npt.NDArray[np.bool_]
    begin: int
    length: int


def _overlapping(corpus: str | MappedText, size: int, written: str) -> Iterator[str]:
    """Yield the corpus in parts, of which one at least has each passage that `written` can have."""
    if isinstance(corpus, str):
        yield corpus
        return
    for begin in range(0, len(corpus), size):
        yield corpus[begin : begin + size + len(written)]


def _search(corpus: str, written: str, shortest: int) -> _Found:
    copied = np.zeros(len(written), dtype=np.bool_)
    pieces = alive = _Pieces.characters(corpus, written)
    while pieces.found:
        alive = pieces
        if pieces.length == shortest:
            copied = pieces.covered()
        doubled = 2 * pieces.length
        pieces = pieces.longer(min(doubled, shortest) if pieces.length < shortest else doubled)
    longest = _longest(alive, pieces.length)
    if not longest.found:
        return _Found(copied, 0, 0)
    return _Found(copied, int(np.argmax(longest.copied())), longest.length)


@dataclass(frozen=True)
class _Pieces:
    """The names of all substrings ("pieces") of `length` characters, at each position of the two texts.

    M and N are the lengths of `written` and `corpus`. Equal pieces have equal names, different pieces different names,
    from 1; 0 is a piece that is not in `written`.
    """

    length: int
    written: Ids  # (M - length + 1,)
    corpus: Ids  # (N - length + 1,)

    @classmethod
    def characters(cls, corpus: str, written: str) -> _Pieces:
        """Single characters, named by their ids in a vocabulary of `written`, where [UNK] is 0."""
        vocabulary = Vocabulary.from_text(written)
        names = np.empty(len(corpus), dtype=np.int32)
        for begin in range(0, len(corpus), PART):
            names[begin : begin + PART] = vocabulary.encode(corpus[begin : begin + PART])
        return cls(1, vocabulary.encode(written), names)

    @property
    def found(self) -> bool:
        """Whether any piece of `written` is in the corpus."""
        return bool(self.corpus.any())

    def longer(self, length: int) -> _Pieces:
        """The pieces of a greater `length`, at most twice this one: each is two of these pieces, which may overlap."""
        step = length - self.length
        base = int(self.written.max(initial=0)) + 1
        ahead = max(0, len(self.written) - step)
        pairs, names = np.unique(_paired(self.written[:ahead], self.written[step:], base), return_inverse=True)
        corpus = np.zeros(max(0, len(self.corpus) - step), dtype=np.int32)
        for begin in range(0, len(corpus), PART):
            part = self.corpus[begin : begin + PART + step]
            at = np.flatnonzero((part[: len(part) - step] != 0) & (part[step:] != 0))
            corpus[begin + at] = _names(pairs, _paired(part[at], part[at + step], base))
        return _Pieces(length, (names + 1).astype(np.int32), corpus)

    def copied(self) -> npt.NDArray[np.bool_]:
        """Which pieces of `written` are in the corpus: (M - length + 1,)."""
        seen = np.zeros(int(self.written.max(initial=0)) + 1, dtype=np.bool_)
        seen[self.corpus[self.corpus != 0]] = True
        return seen[self.written]

    def covered(self) -> npt.NDArray[np.bool_]:
        """Which characters of `written` are inside a piece that is in the corpus: (M,)."""
        copied = self.copied()
        # +1 at the start of a copied piece and -1 after its end: the running sum counts the pieces around a character.
        edges = np.zeros(len(copied) + self.length, dtype=np.int64)
        edges[: len(copied)] += copied
        edges[self.length :] -= copied
        return np.cumsum(edges)[:-1] > 0


def _longest(pieces: _Pieces, too_long: int) -> _Pieces:
    """The longest pieces found in the corpus: at least as long as `pieces`, and shorter than `too_long`."""
    while too_long - pieces.length > 1:
        between = pieces.longer((pieces.length + too_long) // 2)
        if between.found:
            pieces = between
        else:
            too_long = between.length
    return pieces


def _paired(first: Ids, second: Ids, base: int) -> npt.NDArray[np.int64]:
    """One number for each pair of names, which are all below `base`."""
    return first.astype(np.int64) * base + second


def _names(pairs: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The position of each wanted pair in the sorted `pairs`, from 1; 0 for a pair that is not there."""
    if not len(pairs):
        return np.zeros_like(wanted)
    places = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.where(pairs[places] == wanted, places + 1, 0)


def _check_memory(characters: int) -> None:
    needed, present = INDEX_BYTES * characters, memory_bytes()
    if present is not None and needed > present:
        raise CorpusError(
            f"a limit on copying needs {needed / 1e9:.0f} GB of memory for a text of {characters:,} characters, and "
            f"this machine has {present / 1e9:.0f} GB; generate without --max-copy and look with --novelty"
        )


class CopyGuard:
    """Forbid ids that would make a copied passage longer than `limit` ids.

    For each position of the corpus it stores a key: the fingerprint of the `limit` ids before the position in the high
    bits, and the id at the position in the low bits. Equal passages have equal fingerprints, so no copy passes.
    Different passages collide with a probability of about 2**(b - 64), for ids of b bits; an id is then forbidden
    needlessly.
    """

    def __init__(self, corpus_ids: Ids | MappedIds, vocabulary_size: int, limit: int) -> None:
        """Index the corpus, ids (N,), in 8 N bytes. The time is proportional to N times `limit`.

        Raises:
            ConfigError: if `limit` is less than 1.
            CorpusError: if the corpus is on disk, and its index is too large for the memory of this machine.
            VocabularyError: if an id is outside the vocabulary.
        """
        if limit < 1:
            raise ConfigError(f"the longest passage that may be copied must be at least 1, not {limit}")
        if isinstance(corpus_ids, MappedIds):
            _check_memory(len(corpus_ids))
        elif len(corpus_ids) and not 0 <= corpus_ids.min() <= corpus_ids.max() < vocabulary_size:
            raise VocabularyError(f"the corpus has ids outside the vocabulary of {vocabulary_size}")
        self.limit = limit
        self.vocabulary_size = vocabulary_size
        self._id_bits = np.uint64((1 << (vocabulary_size - 1).bit_length()) - 1)
        # Random, as multilinear hashing requires, but the same on every machine.
        self._multipliers = np.random.Philox(key=limit).random_raw(limit)
        self._keys = self._sorted_keys(corpus_ids)

    def forbidden(self, recent: Ids) -> npt.NDArray[np.bool_]:
        """Return a mask (V,) of the ids that must not follow. Only the last `limit` of the ids so far matter."""
        result = np.zeros(self.vocabulary_size, dtype=np.bool_)
        if len(recent) >= self.limit:
            [fingerprint] = self._fingerprints(recent[-self.limit :])
            first = np.searchsorted(self._keys, fingerprint)
            # Keys are unique, so the next V include all with this fingerprint; the difference is the id.
            ids = self._keys[first : first + self.vocabulary_size] - fingerprint
            result[ids[ids <= self._id_bits]] = True
        return result

    __call__ = forbidden

    def _fingerprints(self, ids: Ids) -> Keys:
        """The fingerprint of every `limit` consecutive ids, with zeros in the low bits, where the next id goes.

        Multilinear hashing is universal in all but the lowest bits, as many as an id has (Lemire and Kaser, 2014,
        arXiv:1202.4961). Powers of one base instead of random multipliers would fail on some texts.
        """
        sums = np.correlate(ids.astype(np.uint64), self._multipliers, "valid")
        return sums & ~self._id_bits

    def _sorted_keys(self, ids: Ids | MappedIds) -> Keys:
        keys = np.empty(max(0, len(ids) - self.limit), dtype=np.uint64)
        for begin in range(0, len(keys), PART):
            followers = ids[begin + self.limit : begin + self.limit + PART]
            before = ids[begin : begin + len(followers) + self.limit - 1]
            keys[begin : begin + PART] = self._fingerprints(before) | followers.astype(np.uint64)
        keys.sort()
        fresh = np.ones(len(keys), dtype=np.bool_)
        fresh[1:] = keys[1:] != keys[:-1]
        return keys[fresh]
