"""What the records of a text cost a model: read along, each on its own, or divided and read as in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from charwright.arguments import require
from charwright.config import RecordsConfig
from charwright.data.labels import label_id
from charwright.data.records import Records
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.cutter import Cutter
from charwright.generation.engine import Engine
from charwright.generation.list_scores import ListScores
from charwright.generation.record_scores import Score, score_records

RECORD = "record"
"""What a model of records divides a text by."""


@dataclass(frozen=True)
class TextScores:
    """Scores texts with a model; `records` and `record_end` are those of its training, if it was trained on records."""

    engine: Engine
    vocabulary: Vocabulary
    records: RecordsConfig | None
    record_end: str | None

    def usual(self, separator: str | None = None) -> str:
        """What a text is divided by if nothing is said: `record` for a model of records, otherwise `line`."""
        return RECORD if self.records is not None and separator is None else "line"

    @property
    def records_are_lines(self) -> bool:
        """Whether no two records of training are on one line."""
        return self.records is not None and self.records.records in ("line", "blank")

    def of(self, text: str | Iterable[str] | Records, **options: Any) -> Iterator[Score]:
        """The scores of a text, of pieces of it, or of records; options and errors as for `Generator.score`."""
        if isinstance(text, Records):
            return self._of_records(text, **options)
        require(text, Iterable, "a text to score is a str, pieces of one, or Records")
        listed = [text] if isinstance(text, str) else text
        if isinstance(listed, list | tuple) and self._are_records(listed, options):
            separator = options.get("separator") or "\n"
            advice = "pass Records.of(records, end)" if self.records else f"let each end with {separator!r}"
            raise UsageError(
                f"these are pieces of one text, in which nothing ends a record; for a list of records, {advice}"
            )
        return self.of_pieces((("", _checked(piece)) for piece in listed if piece != ""), **options)

    def of_pieces(
        self,
        pieces: Iterable[tuple[str, str]],
        *,
        by: str | None = None,
        separator: str | None = None,
        independent: bool = False,
        warm_up: int = 0,
        label: str | None = None,
    ) -> Iterator[Score]:
        """The scores of a text that comes as (file, piece of its text)."""
        by = by or self.usual(separator)
        if label is not None:
            label_id(self.vocabulary, label)
        if by == RECORD:
            self._check_records(separator, warm_up)
            return self._list(label).of(pieces)
        if self.vocabulary.labels and self.records is None:
            raise UsageError(
                "the model has labels, and it is not known what ends its records: pass record_end, or open the run"
                " with charwright.load"
            )
        return score_records(
            self.engine,
            self.vocabulary,
            pieces,
            Cutter(by, separator),
            independent=independent,
            warm_up=warm_up,
            before=self.record_end or "",
        )

    def _of_records(self, text: Records, *, label: str | None = None, **others: Any) -> Iterator[Score]:
        if any(value and (name, value) != ("by", RECORD) for name, value in others.items()):
            raise UsageError("records are scored one by one as they are; of the options they take label alone")
        self._check_records(None, 0)
        if label is not None:
            label_id(self.vocabulary, label)
        return self._list(label).of_records(text)

    def _list(self, label: str | None) -> ListScores:
        assert self.records is not None
        return ListScores(self.engine, self.vocabulary, self.records, self.record_end or "", label)

    def _check_records(self, separator: str | None, warm_up: int) -> None:
        if self.records is None:
            raise UsageError("the model was not trained on records, so name another kind with --by: line, for example")
        if separator is not None:
            raise UsageError("--separator says where records end, and so does --by record; choose one")
        if warm_up:
            raise UsageError("--warm-up belongs to a text that is read along; add --by line")

    def _are_records(self, listed: list[str] | tuple[str, ...], options: dict[str, Any]) -> bool:
        """Whether the pieces are meant as records, each on its own, since none of them has what ends one."""
        separator = options.get("separator")
        by = options.get("by") or self.usual(separator)
        if by != RECORD and not (by == "line" and options.get("independent")):
            return False
        end = self.record_end if by == RECORD else separator or "\n"
        return sum(piece != "" for piece in listed) > 1 and not any(end and end in _checked(piece) for piece in listed)


def _checked(piece: str) -> str:
    if not isinstance(piece, str):
        raise UsageError(f"a piece of a text is a str, not {type(piece).__name__}")
    return piece
