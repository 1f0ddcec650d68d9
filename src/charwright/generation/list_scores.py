"""How surprising each record of a list is to a model of records: divided and read as in training.

So the records of a file together cost what `evaluate` gives for it. (Several files are one text for `evaluate`; here a
record ends with its file.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat

import numpy as np

from charwright.config import RecordsConfig
from charwright.data.labels import label_id
from charwright.data.records import Records, label_and_text, pattern_of, without_end, without_label, without_newlines
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import CorpusError, UsageError
from charwright.generation.cutter import Cutter, Segment
from charwright.generation.engine import Engine
from charwright.generation.reading import RecordByRecord
from charwright.generation.record_scores import MOST_TEXT, Score
from charwright.generation.session import prompt_ids
from charwright.generation.streams import Ids

LINE_ENDS = "\r\n"
AT_ONCE = 4096
"""Records of a list that are read together."""

Row = tuple[int, tuple[str, str | None]]


@dataclass(frozen=True)
class Raw:
    """A record without what ends it, and where it begins: line and column from 1."""

    text: str
    file: str = ""
    line: int = 1
    column: int = 1
    label: str | None = None

    def after(self, text: str) -> Raw:
        """The place behind a text that begins at this place."""
        lines = text.count("\n")
        column = len(text) - text.rfind("\n") if lines else self.column + len(text)
        return replace(self, line=self.line + lines, column=column)

    @property
    def place(self) -> str:
        """Its line, for a message."""
        return f"line {self.line:,}" + (f" of {self.file}" if self.file else "")


@dataclass(frozen=True)
class ListScores:
    """Scores the records of texts that are divided by `records`; `end` follows each, as in training.

    `label` is taken for that of all records, whether the text has the column of labels or not.
    """

    engine: Engine
    vocabulary: Vocabulary
    records: RecordsConfig
    end: str
    label: str | None = None
    _known: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def of(self, pieces: Iterable[tuple[str, str]]) -> Iterator[Score]:
        """Yield the score of each record of a text that comes as (file, piece of its text); empty ones are left out.

        Raises:
            CorpusError: when a record has no label where the text has a column of them.
            UsageError: when the model has no such label.
        """
        reading = self._reading()
        for found in self._divided(pieces):
            labelled = [self._labelled(raw) for raw in found if raw.text.strip()]
            if labelled:
                yield from self._scores(reading, labelled)

    def of_records(self, records: Records) -> Iterator[Score]:
        """Yield the score of each record of a list that is divided already; `line` is its number."""
        labels: Iterable[str | None] = repeat(self.label, records.count)
        if self.vocabulary.labels and self.label is None:
            if records.labels is None:
                raise UsageError("the model has labels, and these records have none; name one for all as label")
            labels = records.labels
        reading = self._reading()
        for numbered in _batched(enumerate(zip(records, labels, strict=True), 1)):
            found = [Raw(text, line=number, label=label) for number, (text, label) in numbered]
            yield from self._scores(reading, found)

    def _reading(self) -> RecordByRecord:
        return RecordByRecord(self.engine, prompt_ids(self.vocabulary, self.end))

    def _divided(self, pieces: Iterable[tuple[str, str]]) -> Iterator[list[Raw]]:
        """Yield records as they end, several at a time."""
        if self.records.expression is None:
            return _cut(self.records, pieces)
        return _matched(self.records, self.end, pieces)

    def _labelled(self, raw: Raw) -> Raw:
        if not self.vocabulary.labels:
            return raw
        if self.label is not None:
            bare = without_label(raw.text, self.records.label, self.vocabulary.labels)
            return replace(raw, text=bare, label=self.label)
        try:
            label, text = label_and_text(raw.text, self.records.label or "first", raw.place)
        except CorpusError as error:
            raise CorpusError(
                f"{error.for_shell}; if the text has no column of labels, name one with --label"
            ) from error
        return replace(raw, text=text, label=label)

    def _id_of(self, label: str, raw: Raw) -> int:
        if label not in self._known:
            try:
                self._known[label] = label_id(self.vocabulary, label)
            except UsageError as error:
                raise UsageError(f"{raw.place}: {error.for_shell}") from error
        return self._known[label]

    def _ids(self, raw: Raw) -> Ids:
        """The ids of a record and its end, after that of its label if it has one."""
        ids = self.vocabulary.encode(raw.text + self.end)
        return ids if raw.label is None else np.insert(ids, 0, self._id_of(raw.label, raw))

    def _scores(self, reading: RecordByRecord, found: Sequence[Raw]) -> Iterator[Score]:
        parts = [self._ids(raw) for raw in found]
        begins = np.cumsum([0, *map(len, parts[:-1])])
        unknown = np.concatenate(parts) == UNKNOWN_ID
        nats = reading.nats(parts, continues=False) + unknown * self.vocabulary.unknown_nats
        if found[0].label is not None:
            nats[begins] = 0.0  # The label is given.
        costs = np.add.reduceat(nats, begins) / math.log(2)
        missed = np.add.reduceat(unknown.astype(np.int64), begins)
        for raw, bits, strange in zip(found, costs.tolist(), missed.tolist(), strict=True):
            chars = len(raw.text) + len(self.end)
            text = raw.text[:MOST_TEXT]
            yield Score(text, raw.file, raw.line, raw.column, chars, strange, bits, label=raw.label)


def _cut(records: RecordsConfig, pieces: Iterable[tuple[str, str]]) -> Iterator[list[Raw]]:
    kind, pattern = records.records, pattern_of(records)
    cutter = Cutter(kind) if kind in ("line", "blank") else Cutter(separator=kind)
    at, held = Raw(""), list[str]()
    for segment in chain(cutter.segments(pieces), [Segment("", "", np.zeros(0, dtype=np.int64), first=True)]):
        found: list[Raw] = []
        if segment.first:
            if held:
                found.append(_bare(replace(at, text="".join(held)), pattern, kind))
            at, held = Raw("", segment.file), []
        begin = 0
        for end in segment.ends.tolist():
            whole = "".join([*held, segment.text[begin:end]])
            found.append(_bare(replace(at, text=whole), pattern, kind))
            at, held, begin = at.after(whole), [], end
        if begin < len(segment.text):
            held.append(segment.text[begin:])
        yield found


def _bare(raw: Raw, pattern: re.Pattern[str], kind: str) -> Raw:
    """A record without its end; between blank lines, also without the line ends around it."""
    end = next(pattern.finditer(raw.text), None)
    text = raw.text if end is None or end.end() < len(raw.text) else raw.text[: end.start()]
    if kind != "blank":
        return replace(raw, text=text)
    bare = text.lstrip(LINE_ENDS)
    return replace(raw.after(text[: len(text) - len(bare)]), text=bare.rstrip(LINE_ENDS))


def _matched(records: RecordsConfig, end: str, pieces: Iterable[tuple[str, str]]) -> Iterator[list[Raw]]:
    """The records that a regular expression ends. It may look at what follows, so a file is taken as a whole."""
    pattern = pattern_of(records)
    for file, text in _whole_files(pieces):
        at, begin, found = Raw("", file), 0, list[Raw]()
        for match in pattern.finditer(text):
            found.append(replace(at, text=without_newlines(text[begin : match.start()], end)))
            at, begin = at.after(text[begin : match.end()]), match.end()
        yield [*found, replace(at, text=without_end(without_newlines(text[begin:], end), end))]


def _whole_files(pieces: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    file, parts = "", list[str]()
    for name, text in pieces:
        if name != file or not text:
            yield file, "".join(parts)
            file, parts = name, []
        parts.append(text)
    yield file, "".join(parts)


def _batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows, `AT_ONCE` at a time."""
    waiting = iter(rows)
    while found := list(islice(waiting, AT_ONCE)):
        yield found
