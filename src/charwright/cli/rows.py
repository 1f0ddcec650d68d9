"""Words, and the rows that a long line takes on a screen: where it breaks, and the way up and down in it."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

Width = Callable[[str], int]
"""How many columns a character takes on the screen."""


def is_wide(character: str) -> bool:
    """Whether a character takes two columns, as those of Chinese, Japanese and Korean do."""
    return unicodedata.east_asian_width(character) in ("W", "F")


def begins_word(text: str, index: int) -> bool:
    """Whether a word begins at an index that is neither the first nor the last: behind a space, or between characters.

    Chinese and Japanese have no spaces: each of their characters is a word, with the punctuation that belongs to it.
    """
    before, here = text[index - 1], text[index]
    if here.isspace() or before.isspace():
        return not here.isspace()
    return (_is_word(before) or _is_word(here)) and not _closes(here) and not _opens(before)


def first_word(text: str) -> str:
    """The space at the beginning of a text, and the word behind it."""
    space = len(text) - len(text.lstrip())
    ends = (index for index in range(space + 1, len(text)) if text[index].isspace() or begins_word(text, index))
    return text[: next(ends, len(text))]


def _is_word(character: str) -> bool:
    # Korean is wide too, and has spaces.
    return is_wide(character) and not "\uac00" <= character <= "\ud7a3"


def _opens(character: str) -> bool:
    return unicodedata.category(character) in ("Ps", "Pi")


def _closes(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" and not _opens(character)


@lru_cache(maxsize=512)
def row_starts(line: str, columns: int, width: Width) -> tuple[int, ...]:
    """Where the rows begin that a line takes: before a word, if it fits into a row, and else before a character.

    Spaces at the end of a row may hang over the edge, where nobody sees them.
    """
    starts, column, word = [0], 0, 0
    for index, character in enumerate(line):
        if index and begins_word(line, index):
            word = index
        if column + width(character) > columns and character != " ":
            starts.append(word if word > starts[-1] else index)
            column = sum(map(width, line[starts[-1] : index]))
        column += width(character)
    return tuple(starts)


def moved(text: str, cursor: int, step: int, columns: int, width: Width, column: int | None = None) -> tuple[int, int]:
    """The cursor one row up (-1) or down (1), and the column that it strives for, given again for the next step."""
    rows = _rows(text, cursor, columns, width)
    here = bisect_right(rows, cursor) - 1
    if column is None:
        column = sum(map(width, text[rows[here] : cursor]))
    there = here + step
    if there < 0:
        if rows[0] == 0:
            return 0, column
        rows = _rows(text, rows[0] - 1, columns, width)
        there = len(rows) - 1
    elif there == len(rows):
        end = text.find("\n", cursor)
        if end < 0:
            return len(text), column
        rows, there = _rows(text, end + 1, columns, width), 0
    return _place(text, rows, there, column, width), column


def _rows(text: str, cursor: int, columns: int, width: Width) -> list[int]:
    """Where the rows begin of the line that the cursor is in."""
    begin = text.rfind("\n", 0, cursor) + 1
    end = text.find("\n", cursor)
    return [begin + start for start in row_starts(text[begin : end if end >= 0 else len(text)], columns, width)]


def _place(text: str, rows: list[int], row: int, column: int, width: Width) -> int:
    """The index at a column of a row, or the row's last where it is shorter."""
    index, reached = rows[row], 0
    last = rows[row + 1] - 1 if row + 1 < len(rows) else len(text)
    while index < last and text[index] != "\n" and reached + width(text[index]) <= column:
        reached += width(text[index])
        index += 1
    return index
