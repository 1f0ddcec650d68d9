"""Word boundaries, line wrapping, and cursor movement by rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charwright.compose.rows import first_word, is_wide, move_by_row, row_starts

TEXTS = st.text(alphabet="ab \n中，é", max_size=30)


def width(character: str) -> int:
    return 2 if is_wide(character) else 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("to be", "to"),
        (" to be", " to"),
        ("\nto be", "\nto"),
        ("be, or", "be,"),
        ("中文字", "中"),
        ("中，文", "中，"),
        ("「中」文", "「中」"),
        ("abc中文", "abc"),
        ("한국어 글", "한국어"),
        ("  ", "  "),
        ("", ""),
    ],
)
def test_the_first_word(text: str, word: str) -> None:
    assert first_word(text) == word


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("", [""]),
        ("to be or", ["to be or"]),
        ("to be or not", ["to be or ", "not"]),
        ("to be   or not", ["to be   ", "or not"]),
        ("incomprehensible", ["incompre", "hensible"]),
        ("an incomprehensible", ["an ", "incompre", "hensible"]),
        ("中文字符，一", ["中文字", "符，一"]),
        ("a中文字符", ["a中文字", "符"]),
    ],
)
def test_lines_break_between_words(line: str, rows: list[str]) -> None:
    starts = [*row_starts(line, 8, width), len(line)]
    assert [line[begin:end] for begin, end in pairwise(starts)] == rows


@given(TEXTS.map(lambda text: text.replace("\n", "")), st.integers(2, 9))
def test_rows_fit(line: str, columns: int) -> None:
    starts = [*row_starts(line, columns, width), len(line)]
    for begin, end in pairwise(starts):
        assert sum(map(width, line[begin:end].rstrip(" "))) <= columns


def test_up_and_down_move_by_rows_and_keep_the_goal_column() -> None:
    text = "to be or not to be\nxy\nthat is the question"  # to be or| not to| be/ xy/ that is| the| question
    places = [(6, 6)]
    for _ in range(7):
        places.append(move_by_row(text, places[-1][0], 1, 8, width, places[-1][1]))
    assert [place for place, _ in places] == [6, 15, 18, 21, 28, 33, 40, 42]
    for expected in (33, 28, 21, 18, 15, 6, 0):
        places.append(move_by_row(text, places[-1][0], -1, 8, width, 6))
        assert places[-1][0] == expected


def test_up_from_the_first_row_moves_to_the_start_and_down_from_the_last_to_the_end() -> None:
    assert move_by_row("abc", 2, -1, 8, width) == (0, 2)
    assert move_by_row("abc", 2, 1, 8, width) == (3, 2)


@given(TEXTS, st.integers(0, 30), st.integers(2, 9), st.sampled_from([-1, 1]))
def test_moving_by_rows_stays_inside_the_text(text: str, cursor: int, columns: int, step: int) -> None:
    cursor = min(cursor, len(text))
    reached, _ = move_by_row(text, cursor, step, columns, width)
    assert 0 <= reached <= len(text)
    assert (reached - cursor) * step >= 0
