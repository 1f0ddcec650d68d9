"""Changes to a text, the steps of undo and redo."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """The replacement of `removed` with `inserted` at the index `at` of a text."""

    at: int
    removed: str
    inserted: str

    @classmethod
    def between(cls, before: str, after: str) -> Change:
        """Return the smallest change from one text to another, by bisection over common prefixes and suffixes."""
        shorter = min(len(before), len(after))
        begin = bisect_left(range(1, shorter + 1), True, key=lambda n: before[:n] != after[:n])
        rest = shorter - begin
        end = bisect_left(range(1, rest + 1), True, key=lambda n: before[-n:] != after[-n:])
        return cls(begin, before[begin : len(before) - end], after[begin : len(after) - end])

    def apply(self, text: str) -> str:
        """Return the text with this change made."""
        return text[: self.at] + self.inserted + text[self.at + len(self.removed) :]

    def inverse(self) -> Change:
        """Return the change that undoes this one."""
        return Change(self.at, self.inserted, self.removed)

    def merge(self, other: Change, *, across_words: bool) -> Change | None:
        """Return this change followed by `other` as one undo step, or None if they are separate steps.

        Letters typed within a word merge, and so do single characters deleted in a row. With `across_words`, all
        consecutive insertions merge.
        """
        if not self.removed and not other.removed and other.at == self.at + len(self.inserted):
            if across_words or (len(other.inserted) == 1 and not _begins_word(self.inserted[-1], other.inserted)):
                return Change(self.at, "", self.inserted + other.inserted)
        elif not self.inserted and not other.inserted and len(other.removed) == 1:
            if other.at + 1 == self.at:
                return Change(other.at, other.removed + self.removed, "")
            if other.at == self.at:
                return Change(self.at, self.removed + other.removed, "")
        return None


def _begins_word(before: str, character: str) -> bool:
    return before.isspace() and not character.isspace()
