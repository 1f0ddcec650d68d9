"""Word boundaries, line wrapping, and cursor movement by rows."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

Width = Callable[[str], int]
"""A function that returns the number of columns of a character."""


def is_wide(character: str) -> bool:
    """Whether a character takes two columns, as in Chinese, Japanese and Korean."""
    return unicodedata.east_asian_width(character) in ("W", "F")


def begins_word(text: str, index: int) -> bool:
    """Whether a word begins at an index greater than 0.

    Chinese and Japanese have no spaces: each character is a word, together with its punctuation.
    """
    before, here = text[index - 1], text[index]
    if here.isspace() or before.isspace():
        return not here.isspace()
    return (_is_word(before) or _is_word(here)) and not _closes(here) and not _opens(before)


def first_word(text: str) -> str:
    """Return the first word of a text, with the whitespace before it."""
    space = len(text) - len(text.lstrip())
    ends = (index for index in range(space + 1, len(text)) if text[index].isspace() or begins_word(text, index))
    return text[: next(ends, len(text))]


def _is_word(character: str) -> bool:
    """Whether a character is a word by itself. Hangul is wide, but Korean has spaces."""
    return is_wide(character) and not "\uac00" <= character <= "\ud7a3"


def _opens(character: str) -> bool:
    return unicodedata.category(character) in ("Ps", "Pi")


def _closes(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" and not _opens(character)


@lru_cache(maxsize=512)
def row_starts(line: str, columns: int, width: Width) -> tuple[int, ...]:
    """Return the indices at which the rows of a wrapped line begin.

    Lines break before a word, or inside a word that is longer than a row. Spaces at the end of a row may exceed it.
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


def move_by_row(
    text: str, cursor: int, step: int, columns: int, width: Width, goal_column: int | None = None
) -> tuple[int, int]:
    """Return the cursor one row up (-1) or down (1), and the goal column to pass to the next call.

    The goal column lets the cursor return to its column after it crosses a shorter row.
    """
    rows = _rows(text, cursor, columns, width)
    row = bisect_right(rows, cursor) - 1
    if goal_column is None:
        goal_column = sum(map(width, text[rows[row] : cursor]))
    row += step
    if row < 0:
        if rows[0] == 0:
            return 0, goal_column
        rows = _rows(text, rows[0] - 1, columns, width)
        row = len(rows) - 1
    elif row == len(rows):
        end = text.find("\n", cursor)
        if end < 0:
            return len(text), goal_column
        rows, row = _rows(text, end + 1, columns, width), 0
    return _index_at(text, rows, row, goal_column, width), goal_column


def _rows(text: str, cursor: int, columns: int, width: Width) -> list[int]:
    """Return the row starts of the line that contains the cursor, as indices of the text."""
    begin = text.rfind("\n", 0, cursor) + 1
    end = text.find("\n", cursor)
    return [begin + start for start in row_starts(text[begin : end if end >= 0 else len(text)], columns, width)]


def _index_at(text: str, rows: list[int], row: int, column: int, width: Width) -> int:
    """Return the index at a column of a row, or the last index of a shorter row."""
    index, reached = rows[row], 0
    last = rows[row + 1] - 1 if row + 1 < len(rows) else len(text)
    while index < last and text[index] != "\n" and reached + width(text[index]) <= column:
        reached += width(text[index])
        index += 1
    return index
