"""How much of a text stands word for word in the corpus, and a guard that keeps a writer from copying.

`measure` names the pieces of the written text, of 1, 2, 4, ... characters (Karp, Miller and Rosenberg, 1972), and looks
for them in the corpus. A suffix array would sort the whole corpus for the sake of a page, and its libraries are
compiled; fingerprints would have to be checked against the text, and names are exact by themselves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, VocabularyError

Ids = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]

PART = 1 << 16  # places of the corpus at a time: what lies between two steps then stays in the processor's cache


@dataclass(frozen=True)
class Novelty:
    """How much of a text was copied.

    `longest` is the longest passage of it that the corpus has too, the first among equals, and `longest_at` its place
    in the text. `copied_chars` counts the characters inside copied passages of `shortest` characters or more.
    """

    characters: int
    longest: str
    longest_at: int
    copied_chars: int
    shortest: int

    @property
    def copied_share(self) -> float:
        """The part of the text that was copied, from 0 to 1."""
        return self.copied_chars / self.characters if self.characters else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "copied_share": self.copied_share}


def measure(corpus: str, written: str, shortest: int = 20) -> Novelty:
    """Find what of `written` stands word for word in `corpus`.

    Exact for all characters; half of a surrogate pair is none, and equals nothing. It takes four bytes for each
    character of the corpus, twice, and is meant for a `written` that is much shorter.

    Raises:
        ConfigError: when `shortest` is less than 1.
    """
    if shortest < 1:
        raise ConfigError(f"the shortest copied passage must be at least 1, not {shortest}")
    copied = np.zeros(len(written), dtype=np.bool_)
    pieces = alive = _Pieces.characters(corpus, written)
    while pieces.found:
        alive = pieces
        if pieces.length == shortest:
            copied = pieces.covered()
        doubled = 2 * pieces.length
        pieces = pieces.longer(min(doubled, shortest) if pieces.length < shortest else doubled)
    longest = _longest(alive, pieces.length)
    begin = int(np.argmax(longest.copied())) if longest.found else 0
    passage = written[begin : begin + longest.length] if longest.found else ""
    return Novelty(len(written), passage, begin, int(copied.sum()), shortest)


@dataclass(frozen=True)
class _Pieces:
    """All pieces of `length` characters: the names of those that begin at each place of the two texts.

    M and N are how many characters `written` and `corpus` have. Equal pieces have equal names, different ones have
    different names, from 1 on; 0 is a piece that `written` does not have.
    """

    length: int
    written: Ids  # (M - length + 1,)
    corpus: Ids  # (N - length + 1,)

    @classmethod
    def characters(cls, corpus: str, written: str) -> _Pieces:
        """Single characters; their names are the ids of a vocabulary of `written`, where [UNK] is 0."""
        vocabulary = Vocabulary.from_text(written)
        names = np.empty(len(corpus), dtype=np.int32)
        for begin in range(0, len(corpus), PART):
            names[begin : begin + PART] = vocabulary.encode(corpus[begin : begin + PART])
        return cls(1, vocabulary.encode(written), names)

    @property
    def found(self) -> bool:
        """Whether the corpus has any piece of `written`."""
        return bool(self.corpus.any())

    def longer(self, length: int) -> _Pieces:
        """The pieces of `length` characters, at most twice as many: each is two of these, which may overlap."""
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
        """Which pieces of `written` the corpus has: (M - length + 1,)."""
        seen = np.zeros(int(self.written.max(initial=0)) + 1, dtype=np.bool_)
        seen[self.corpus[self.corpus != 0]] = True
        return seen[self.written]

    def covered(self) -> npt.NDArray[np.bool_]:
        """Which characters of `written` lie in a piece that the corpus has: (M,)."""
        copied = self.copied()
        # +1 where a copied piece begins and -1 behind its end: the sum so far is how many of them one is inside of.
        edges = np.zeros(len(copied) + self.length, dtype=np.int64)
        edges[: len(copied)] += copied
        edges[self.length :] -= copied
        return np.cumsum(edges)[:-1] > 0


def _longest(pieces: _Pieces, too_long: int) -> _Pieces:
    """The longest pieces that the corpus has any of: as long as `pieces` or longer, and shorter than `too_long`."""
    while too_long - pieces.length > 1:
        between = pieces.longer((pieces.length + too_long) // 2)
        if between.found:
            pieces = between
        else:
            too_long = between.length
    return pieces


def _paired(first: Ids, second: Ids, base: int) -> npt.NDArray[np.int64]:
    """One number for each two names, which are all below `base`."""
    return first.astype(np.int64) * base + second


def _names(pairs: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The place of each wanted pair among the sorted `pairs`, from 1 on; 0 for one that is not there."""
    if not len(pairs):
        return np.zeros_like(wanted)
    places = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.where(pairs[places] == wanted, places + 1, 0)


class CopyGuard:
    """Knows which ids would make a copied passage longer than `limit` ids.

    For each place of the corpus it keeps one number: in front the fingerprint of the `limit` ids before that place,
    behind it the id that stands there. Equal passages have equal fingerprints, so no copy is let through. Different
    ones share one with a chance of about 2**(b - 64), for ids of b bits, and then an id is forbidden without need.
    """

    def __init__(self, corpus_ids: Ids, vocabulary_size: int, limit: int) -> None:
        """Learn the corpus, ids (N,): 8 bytes are kept for each, and the time grows with N times `limit`.

        Raises:
            ConfigError: when `limit` is less than 1.
            VocabularyError: when an id is outside the vocabulary.
        """
        if limit < 1:
            raise ConfigError(f"the longest passage that may be copied must be at least 1, not {limit}")
        if len(corpus_ids) and not 0 <= corpus_ids.min() <= corpus_ids.max() < vocabulary_size:
            raise VocabularyError(f"the corpus has ids outside the vocabulary of {vocabulary_size}")
        self.limit = limit
        self.vocabulary_size = vocabulary_size
        self._id_bits = np.uint64((1 << (vocabulary_size - 1).bit_length()) - 1)
        # Drawn, as multilinear hashing asks, but the same on every machine.
        self._multipliers = np.random.Philox(key=limit).random_raw(limit)
        self._keys = self._sorted_keys(corpus_ids)

    def forbidden(self, recent: Ids) -> npt.NDArray[np.bool_]:
        """Which ids (V,) may not follow the ids written so far, of which the last `limit` count."""
        result = np.zeros(self.vocabulary_size, dtype=np.bool_)
        if len(recent) >= self.limit:
            [fingerprint] = self._fingerprints(recent[-self.limit :])
            first = np.searchsorted(self._keys, fingerprint)
            # No key stands twice, so V of them hold all that begin with this fingerprint; what is left is the id.
            ids = self._keys[first : first + self.vocabulary_size] - fingerprint
            result[ids[ids <= self._id_bits]] = True
        return result

    def _fingerprints(self, ids: Ids) -> Keys:
        """The fingerprint of each `limit` ids in a row, with zeros in the place of the next id.

        Multilinear hashing keeps its promise in all bits but the last ones, which are as many as an id has (Lemire
        and Kaser, 2014, arXiv:1202.4961). A power of one base instead of the multipliers would fail on some texts.
        """
        sums = np.correlate(ids.astype(np.uint64), self._multipliers, "valid")
        return sums & ~self._id_bits

    def _sorted_keys(self, ids: Ids) -> Keys:
        keys = np.empty(max(0, len(ids) - self.limit), dtype=np.uint64)
        for begin in range(0, len(keys), PART):
            followers = ids[begin + self.limit :][:PART]
            before = ids[begin : begin + len(followers) + self.limit - 1]
            keys[begin : begin + PART] = self._fingerprints(before) | followers.astype(np.uint64)
        keys.sort()
        fresh = np.ones(len(keys), dtype=np.bool_)
        fresh[1:] = keys[1:] != keys[:-1]
        return keys[fresh]
