"""Whether a record is new: not in the text, not written before, and not nearly one of these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from charwright.errors import MissingExtraError, UsageError


class KnownRecords:
    """The records of a text and those written since, without the whitespace around them.

    >>> known = KnownRecords(["Anna", "Otto"])
    >>> known.reason("Anna "), known.reason("Hanna")
    ('in the text', None)
    """

    def __init__(self, records: Iterable[str], distance: int | None = None) -> None:
        """Take the records of the text. Others within `distance` edits of a known one are not new either.

        An edit inserts, removes or replaces a character (Levenshtein, 1966). To look for one among N records takes time
        proportional to N, about a millisecond for 10,000.

        Raises:
            UsageError: if `distance` is less than 1, or the records are no texts.
            MissingExtraError: when it is given and RapidFuzz is not installed.
        """
        if distance is not None and distance < 1:
            raise UsageError(f"a distance is at least one edit, not {distance}")
        if isinstance(records, str | bytes):
            raise UsageError("the known records are several texts, not one: pass a list")
        listed = set(records)
        if others := [type(record).__name__ for record in listed if not isinstance(record, str)]:
            raise UsageError(f"a known record is a str, not {others[0]}")
        self._text = {record.strip() for record in listed}
        self._written: set[str] = set()
        self._distance = distance
        self._by_length: dict[int, list[str]] = defaultdict(list)
        if distance is not None:
            try:
                from rapidfuzz import process
                from rapidfuzz.distance import Levenshtein
            except ImportError as error:
                raise MissingExtraError("an edit distance (--distance)", "near") from error
            self._extract, self._scorer = process.extractOne, Levenshtein.distance
            for record in self._text:
                self._by_length[len(record)].append(record)

    def reason(self, record: str) -> str | None:
        """Why a record is not new, in words; None for one that is."""
        record = record.strip()
        if not record:
            return "empty"
        if record in self._text:
            return "in the text"
        if record in self._written:
            return "repeated"
        if self._is_near(record):
            return f"within {self._distance} edit{'' if self._distance == 1 else 's'} of another"
        return None

    def add(self, record: str) -> None:
        """Note a record that was written."""
        record = record.strip()
        self._written.add(record)
        if self._distance is not None:
            self._by_length[len(record)].append(record)

    def _is_near(self, record: str) -> bool:
        if self._distance is None:
            return False
        # Texts whose lengths differ by more have a greater distance.
        for length in range(len(record) - self._distance, len(record) + self._distance + 1):
            others = self._by_length.get(length)
            if others and self._extract(record, others, scorer=self._scorer, score_cutoff=self._distance):
                return True
        return False
