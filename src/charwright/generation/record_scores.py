"""How surprising each record of a text is to a model: bits per character, for any length of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import UsageError
from charwright.generation.cutter import Cutter, Ints, Segment, newlines
from charwright.generation.engine import Engine
from charwright.generation.reading import BLOCK, AlongTheText, RecordByRecord
from charwright.generation.scoring import first_bytes
from charwright.generation.session import prompt_ids
from charwright.generation.streams import Float64s, Ids

MOST_TEXT = 100_000
"""Characters of a record that are kept as its text."""
DIGITS = 6
"""Of the figures in JSON and CSV: a millionth of a bit is precise enough, and what differs by less is equal."""


@dataclass(frozen=True)
class Score:
    """What a record costs a model, and where it is.

    The costs are those of all its characters, its line end included. The first character of a text that is read along
    is not predicted: it is neither in `chars` nor in `bits`. A model of bytes predicts it from its second byte on, so
    what its other bytes cost is in `bits`, as in `evaluate`, although `chars` leaves it out.
    """

    text: str
    """The record without what ends it: its first 100,000 characters."""
    file: str
    line: int
    """The line in which it begins, from 1, within its file."""
    column: int
    """The character of the line with which it begins, from 1."""
    chars: int
    """The characters that were predicted."""
    unknown_chars: int
    """Those of them that are not in the vocabulary."""
    bits: float
    """The sum of -log2 p of the characters. A character outside the vocabulary costs what it takes to identify it."""
    cold: bool = False
    """Whether the model begins in it with a zero state although text comes before."""
    label: str | None = None
    """The label that the record is read after, for a model with labels."""

    @property
    def bits_per_char(self) -> float | None:
        """`bits` / `chars`; None if no character was predicted."""
        return self.bits / self.chars if self.chars else None

    def to_json(self) -> dict[str, Any]:
        """What `charwright score RUN FILE --json` prints of it; figures are rounded to a millionth of a bit."""
        per_char = self.bits_per_char
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "chars": self.chars,
            "unknown_chars": self.unknown_chars,
            "bits": round(self.bits, DIGITS),
            "bits_per_char": None if per_char is None else round(per_char, DIGITS),
            "cold": self.cold,
            "text": self.text,
            **({} if self.label is None else {"label": self.label}),
        }

    @property
    def nats(self) -> float:
        """The sum of -ln p of the characters: `bits` times ln 2."""
        return self.bits * math.log(2)


@dataclass(frozen=True)
class Costs:
    """What the characters (N,) of some segments cost in nats, and which are unknown, unpredicted, or begin coldly."""

    nats: Float64s
    unknown: npt.NDArray[np.bool_]
    unpredicted: int  # at the beginning
    cold: Ints  # positions


def score_records(
    engine: Engine,
    vocabulary: Vocabulary,
    pieces: Iterable[tuple[str, str]],
    cutter: Cutter,
    *,
    independent: bool = False,
    warm_up: int = 0,
    before: str = "",
) -> Iterator[Score]:
    """The score of each record of a text that comes as (file, piece of its text); see `Generator.score`.

    `before` is what independent records are read behind; a newline if it is empty.

    Raises:
        UsageError: when the options contradict each other, or the model has labels.
    """
    if vocabulary.labels:
        raise UsageError(
            "the model was trained with labels, so it scores the records that it was trained on; remove --by and"
            " --separator"
        )
    if independent and warm_up:
        raise UsageError("--warm-up belongs to a text that is read along; with --independent nothing comes before")
    if independent and cutter.by == "character" and cutter.separator is None:
        raise UsageError("--independent needs records of several characters; choose another --by")
    if warm_up < 0:
        raise UsageError(f"--warm-up must be at least 0, not {warm_up}")
    reader = _Independent(engine, vocabulary, before) if independent else _Along(engine, vocabulary, warm_up)
    return _scores(reader, cutter, pieces)


def _scores(reader: _Along | _Independent, cutter: Cutter, pieces: Iterable[tuple[str, str]]) -> Iterator[Score]:
    tally = _Tally(cutter)
    batches = reader.batches(cutter.segments(pieces))
    for batch, costs in _computed_ahead(reader, batches) if reader.ahead else _computed(reader, batches):
        begin = 0
        for segment in batch:
            yield from tally.add(segment, costs, begin)
            begin += len(segment.text)
    yield from tally.rest()


Computed = Iterator[tuple[list[Segment], Costs]]


def _computed(reader: _Along | _Independent, batches: Iterable[list[Segment]]) -> Computed:
    for batch in batches:
        yield batch, reader.costs(batch)


def _computed_ahead(reader: _Along | _Independent, batches: Iterable[list[Segment]]) -> Computed:
    """The same; a thread computes the next batch while the caller works on the last one."""
    waiting: tuple[list[Segment], Future[Costs]] | None = None
    with ThreadPoolExecutor(1, "charwright-score") as thread:
        for batch in batches:
            following = batch, thread.submit(reader.costs, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


class _Along:
    """The text is read along: in blocks of one size, wherever files and records end."""

    ahead = True

    def __init__(self, engine: Engine, vocabulary: Vocabulary, warm_up: int) -> None:
        self._vocabulary, self._reading, self._begun = vocabulary, AlongTheText(engine, warm_up), False

    def batches(self, segments: Iterable[Segment]) -> Iterator[list[Segment]]:
        """Yield the segments in blocks of exactly `BLOCK` characters, but for the last."""
        block: list[Segment] = []
        room = BLOCK
        for whole in segments:
            rest = whole
            while len(rest.text) >= room:
                done, rest = rest.divided(room)
                yield [*block, done]
                block, room = [], BLOCK
            if rest.text:
                block.append(rest)
                room -= len(rest.text)
        if block:
            yield block

    def costs(self, block: list[Segment]) -> Costs:
        """What the characters of a block cost."""
        text = "".join(segment.text for segment in block)
        ids = self._vocabulary.encode(text)
        nats, cold = self._reading.nats(ids)
        unpredicted, self._begun = int(not self._begun), True
        return _per_character(self._vocabulary, text, ids, nats, unpredicted, np.array(cold, dtype=np.int64))


class _Independent:
    """Each record is read on its own, and as soon as it has arrived."""

    ahead = False

    def __init__(self, engine: Engine, vocabulary: Vocabulary, before: str) -> None:
        self._vocabulary, self._reading = vocabulary, RecordByRecord(engine, prompt_ids(vocabulary, before))
        self._open = False

    def batches(self, segments: Iterable[Segment]) -> Iterator[list[Segment]]:
        """Yield one segment at a time."""
        for segment in segments:
            yield [segment]

    def costs(self, batch: list[Segment]) -> Costs:
        """What the characters of a segment cost."""
        [segment] = batch
        text, size = segment.text, len(segment.text)
        ended = len(segment.ends) > 0 and segment.ends[-1] == size
        bounds = [0, *segment.ends.tolist(), *([] if ended else [size])]
        parts = [self._vocabulary.encode(text[begin:end]) for begin, end in pairwise(bounds)]
        nats = self._reading.nats(parts, continues=self._open and not segment.first)
        self._open = not ended
        none = np.zeros(0, dtype=np.int64)
        return _per_character(self._vocabulary, text, np.concatenate(parts), nats, 0, none)


def _per_character(vocabulary: Vocabulary, text: str, ids: Ids, nats: Float64s, unpredicted: int, cold: Ints) -> Costs:
    """The costs of the characters of a text, from those of its ids."""
    unknown = ids == UNKNOWN_ID
    if vocabulary.level == "byte":
        firsts = first_bytes(text)
        whole = np.add.reduceat(nats, firsts)
        return Costs(whole, np.zeros(len(text), bool), unpredicted, np.searchsorted(firsts, cold, side="right") - 1)
    unknown[:unpredicted] = False
    return Costs(nats + unknown * vocabulary.unknown_nats, unknown, unpredicted, cold)


@dataclass
class _Tally:
    """Adds up records over the segments that they lie in."""

    cutter: Cutter
    _parts: list[str] = field(default_factory=list)
    _kept: int = 0  # characters in `_parts`
    _nats: float = 0.0
    _chars: int = 0
    _unknown: int = 0
    _cold: bool = False
    _file: str = ""
    _at: tuple[int, int] = (1, 1)  # line and column of the record
    _line: int = 1  # of what follows the last segment
    _column: int = 1
    _open: bool = False

    def add(self, segment: Segment, costs: Costs, offset: int) -> Iterator[Score]:
        """Yield the records that end in a segment, whose costs begin at `offset`."""
        if segment.first:
            yield from self.rest()
            self._file, self._line, self._column = segment.file, 1, 1
        text, size = segment.text, len(segment.text)
        ends = segment.ends
        if not len(ends) or ends[-1] < size:
            ends = np.append(ends, size)
        begins = np.concatenate([[0], ends[:-1]])
        part = slice(offset, offset + size)
        nats = np.add.reduceat(costs.nats[part], begins)
        unknown = np.add.reduceat(costs.unknown[part].astype(np.int64), begins)
        chars = ends - begins
        if offset == 0 and costs.unpredicted:
            chars[0] -= costs.unpredicted
        cold = np.diff(np.searchsorted(costs.cold, offset + np.append(begins, size))) > 0
        lines, columns = self._places(text, begins)
        complete = len(segment.ends)
        rows = zip(
            begins.tolist(), ends.tolist(), nats.tolist(), chars.tolist(), unknown.tolist(), cold.tolist(),
            lines.tolist(), columns.tolist(), strict=True,
        )  # fmt: skip
        for number, (begin, end, cost, count, strange, is_cold, line, column) in enumerate(rows):
            if not self._open:
                self._at, self._open = (line, column), True
            if self._kept < MOST_TEXT:
                self._parts.append(text[begin : min(end, begin + MOST_TEXT - self._kept)])
                self._kept += len(self._parts[-1])
            self._nats += cost
            self._chars += count
            self._unknown += strange
            self._cold = self._cold or is_cold
            if number < complete:
                yield self._record()

    def rest(self) -> Iterator[Score]:
        """Yield the record that nothing ended."""
        if self._open:
            yield self._record()

    def _record(self) -> Score:
        text = "".join(self._parts)
        text = self.cutter.stripped(text)
        score = Score(text, self._file, *self._at, self._chars, self._unknown, self._nats / math.log(2), self._cold)
        self._parts, self._kept, self._nats, self._chars, self._unknown = [], 0, 0.0, 0, 0
        self._cold = self._open = False
        return score

    def _places(self, text: str, begins: Ints) -> tuple[Ints, Ints]:
        """The lines and columns (N,) of positions in a segment; what follows it is at the next ones."""
        breaks = newlines(text)
        before = np.searchsorted(breaks, begins)  # newlines before each
        since = np.concatenate([[1 - self._column], breaks + 1])  # where each line begins
        lines, columns = self._line + before, begins - since[before] + 1
        self._line += len(breaks)
        self._column = len(text) - int(since[-1]) + 1
        return lines, columns
