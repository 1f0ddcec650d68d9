"""A text that is a list of records: names, molecules, tunes, poems. Each is on its own; their order means nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from charwright.config import RecordsConfig, SplitConfig
from charwright.data.labels import label_id
from charwright.data.vocabulary import Ids, Vocabulary
from charwright.errors import CorpusError, UsageError

Ints = npt.NDArray[np.int64]

ABOUT = 1.05
"""How far what is held out may exceed its limit."""

BLANKS = " \t\u3000"
"""What a blank line may have: also the space of Chinese text."""
BLANK_LINES = re.compile(rf"\n(?:[{BLANKS}]*+\r?\n)+")

ENDS = {"line": "\n", "blank": "\n\n"}
"""What ends a record of these kinds, when it is trained and generated."""


@dataclass(frozen=True, eq=False)
class Records:
    """Records as one text, in which `end` follows each; it can be sliced like a `str`.

    `stops` (R,) are the positions after the ends. A label says of which kind a record is and is no part of its text.
    """

    text: str = field(repr=False)
    stops: Ints = field(repr=False)
    end: str
    labels: tuple[str, ...] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, records: Sequence[str], end: str, labels: Sequence[str] | None = None) -> Records:
        """Join records, which are without their ends.

        Raises:
            UsageError: when there are not as many labels as records.
        """
        if labels is not None and len(labels) != len(records):
            raise UsageError(f"there are {len(records):,} records and {len(labels):,} labels")
        lengths = np.array([len(record) for record in records], dtype=np.int64) + len(end)
        text = "".join(record + end for record in records)
        return cls(text, np.cumsum(lengths), end, None if labels is None else tuple(labels))

    @classmethod
    def parse(cls, text: str, config: RecordsConfig, end: str | None = None) -> Records:
        """Divide a text into records. Empty ones are left out.

        `end` is what follows each of them; by default what ends most of them, where an expression matches different
        texts. If records have that inside, as a lookahead allows, it is repeated: a generated record ends at the first
        one. A text to evaluate has the end of the run's records, and may be a single one.

        Raises:
            CorpusError: when there are fewer than two records, or with an `end` none, when nothing ends them, or when
                one has no label where labels are asked for.
        """
        pattern = pattern_of(config)
        *ended, rest = _pieces(text, pattern, config.records)
        found = [piece for piece in [*ended, rest] if piece.strip()]
        if end is not None and not found:
            raise CorpusError(f"the text has no record as in training, each of which ends with {end!r}")
        if end is None and len(found) < 2:
            raise CorpusError(
                f"the text has only {len(found)} record{'' if len(found) == 1 else 's'} with --records "
                f"{config.records!r}; {_keyword_like(config.records)}name what ends each one, or remove --records"
            )
        if config.expression is None:
            end = end or ENDS.get(config.records, config.records)
        else:
            usual = end or _usual_end(text, pattern, config.records)
            if rest.strip():
                found[-1] = without_end(without_newlines(rest, usual), usual)
            end = end or _unambiguous(usual, found)
            found = [without_newlines(piece, end) for piece in found]
        if config.label is None:
            return cls.of(found, end)
        columns = [label_and_text(piece, config.label, f"record {number:,}") for number, piece in enumerate(found, 1)]
        return cls.of([record for _, record in columns], end, [label for label, _ in columns])

    def __iter__(self) -> Iterator[str]:
        """Yield the records without their ends."""
        for begin, stop in pairwise([0, *self.stops.tolist()]):
            yield self.text[begin : stop - len(self.end)]

    @property
    def count(self) -> int:
        """The number of records."""
        return len(self.stops)

    def __len__(self) -> int:
        """Return the number of characters, as for every text."""
        return len(self.text)

    def __getitem__(self, key: slice) -> str:
        return self.text[key]

    def chosen(self, indices: Ints) -> Records:
        """Return some of the records, in the order of their indices (N,)."""
        records = list(self)
        labels = None if self.labels is None else [self.labels[index] for index in indices]
        return Records.of([records[index] for index in indices], self.end, labels)

    def shared_with(self, other: Records) -> int:
        """Return how many of the records are also in another text, whatever their labels."""
        known = set(other)
        return sum(record in known for record in self)

    def ids(self, vocabulary: Vocabulary) -> tuple[Ids, Ints]:
        """Return the ids (N,) of all records, each after the id of its label if it has one, and their stops (R,).

        Raises:
            UsageError: when a label is none of the vocabulary's.
        """
        ids = vocabulary.encode(self.text)
        stops = self.stops
        if len(ids) != len(self.text):  # Each byte is an id.
            sizes = np.array([len(vocabulary.encode(record + self.end)) for record in self], dtype=np.int64)
            stops = np.cumsum(sizes)
        if self.labels is None:
            return ids, stops
        known = {label: label_id(vocabulary, label) for label in dict.fromkeys(self.labels)}
        marks = np.array([known[label] for label in self.labels], dtype=np.int32)
        begins = np.concatenate([[0], stops[:-1]])
        return np.insert(ids, begins, marks), stops + np.arange(1, len(stops) + 1)


def _keyword_like(given: str) -> str:
    """The advice to name a kind of end that is spelled like a given one."""
    close = get_close_matches(given.lower(), ENDS, 1, cutoff=0.75)
    return f"did you mean --records {close[0]}? Otherwise " if close else ""


def split_records(records: Records, config: SplitConfig) -> tuple[Records, Records | None]:
    """Return the records to train on and those to validate on; None when there are none.

    Equal records are on the same side, whatever their labels. `blocks` holds out records spread evenly over the list,
    `tail` the last ones. About `val_limit` characters are held out at most.
    """
    numbers: dict[str, int] = {}
    kinds = np.array([numbers.setdefault(record, len(numbers)) for record in records])
    lengths = np.bincount(kinds, weights=np.diff(records.stops, prepend=0))
    different = len(numbers)
    # As for running text, the training part is rounded down.
    wanted = different - int(different * (1 - config.val_fraction))
    if config.val_limit is not None:
        wanted = min(wanted, int(config.val_limit / lengths.mean()))
    if wanted < 1 or different - wanted < 1:
        return records, None
    chosen = _held_out(different, wanted, config.val_split)
    # The records that are held out may be longer than others.
    while config.val_limit is not None and wanted > 1 and (size := lengths[chosen].sum()) > ABOUT * config.val_limit:
        wanted = max(1, min(wanted - 1, int(wanted * config.val_limit / size)))
        chosen = _held_out(different, wanted, config.val_split)
    held_out = chosen[kinds]
    return records.chosen(np.flatnonzero(~held_out)), records.chosen(np.flatnonzero(held_out))


def _held_out(different: int, wanted: int, split: str) -> npt.NDArray[np.bool_]:
    """Which of so many records (N,) are held out."""
    at = np.arange(different + 1)
    if split == "tail":
        return at[:-1] >= different - wanted
    return np.diff(at * wanted // different) > 0


def pattern_of(config: RecordsConfig) -> re.Pattern[str]:
    """The expression of what ends a record."""
    if config.expression is not None:
        return re.compile(config.expression, re.MULTILINE)
    known = {"line": r"\r?\n", "blank": rf"\r?{BLANK_LINES.pattern}"}
    return re.compile(known.get(config.records, re.escape(config.records)))


def _pieces(text: str, pattern: re.Pattern[str], kind: str) -> Iterator[str]:
    begin = 0
    for match in pattern.finditer(text):
        yield text[begin : match.start()].strip("\r\n" if kind == "blank" else "")
        begin = match.end()
    yield text[begin:].strip("\r\n" if kind == "blank" else "")


def _usual_end(text: str, pattern: re.Pattern[str], kind: str) -> str:
    """What ends most records: an expression may match different texts."""
    [(end, _)] = Counter(match[0] for match in pattern.finditer(text)).most_common(1) or [(kind, 0)]
    if not end:
        raise CorpusError(
            f"--records {kind} divides the text where it matches no character, so nothing ends a record; let it match "
            r"a character there, such as the newline in '/\n(?=Chapter )/'"
        )
    return end


def _unambiguous(end: str, records: Sequence[str]) -> str:
    """What ends records, repeated until none of them has it inside: a newline becomes a blank line."""
    repeated = end
    while any(repeated in without_newlines(record, repeated) for record in records):
        repeated += end
    return repeated


def without_newlines(record: str, end: str) -> str:
    """A record without newlines at its end, if several newlines end records."""
    return record.rstrip("\n") if len(end) > 1 and not end.strip("\n") else record


def without_end(rest: str, end: str) -> str:
    """The text after the last match of an expression, which may have missed an end that nothing follows."""
    return rest.removesuffix(end)


def label_and_text(record: str, column: str, where: str) -> tuple[str, str]:
    """Return the label of a record, which is its first or last column, and the record without it.

    Raises:
        CorpusError: naming the place `where` there is no tab, or nothing on one side of it.
    """
    first, tab, rest = record.partition("\t") if column == "first" else record.rpartition("\t")[::-1]
    label = first.strip()
    if not tab or not label or not rest.strip():
        what = "no tab" if not tab else "an empty column"
        raise CorpusError(f"{where} has {what}, so no label and text: {record[:60]!r}")
    return label, rest


def without_label(record: str, column: str | None, labels: Sequence[str]) -> str:
    """A record without the label in its column, if it has one of these."""
    try:
        label, text = label_and_text(record, column or "first", "it")
    except CorpusError:
        return record
    return text if label in labels else record
