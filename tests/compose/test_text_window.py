"""Which rows of the text are on the screen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prompt_toolkit")

from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout.controls import BufferControl, UIContent

from charwright.compose.text_window import TextWindow

WIDTH = 10


def content(heights: list[int], line: int, column: int) -> UIContent:
    """Paragraphs of so many full rows, and the cursor."""
    texts = ["x" * (WIDTH * height) for height in heights]
    return UIContent(lambda number: [("", texts[number])], len(heights), Point(column, line))


def shown(heights: list[int], height: int, line: int, column: int = 0, suggestion: str = "") -> tuple[int, int]:
    """The first paragraph that a window of `height` rows shows, and how many of its rows are above."""
    manuscript: Any = SimpleNamespace(suggestion=suggestion)
    window = TextWindow(manuscript, BufferControl())
    for _ in range(2):  # The second time from where the first has scrolled to.
        window._scroll_when_linewrapping(content(heights, line, column), WIDTH, height)
        found = window.vertical_scroll, window.vertical_scroll_2
    return found


@pytest.mark.parametrize(
    ("heights", "height", "line", "expected"),
    [
        ([30, 1], 22, 1, (0, 9)),  # After a paragraph that is taller than the window: its last rows.
        ([14, 13], 22, 1, (0, 5)),
        ([14, 13, 1], 22, 2, (0, 6)),
        ([3, 4], 22, 1, (0, 0)),  # All of it fits.
        ([11, 11], 22, 1, (0, 0)),
        ([50, 14, 13, 1], 22, 3, (1, 6)),
    ],
)
def test_no_row_below_the_end_is_empty_while_there_is_text_above(
    heights: list[int], height: int, line: int, expected: tuple[int, int]
) -> None:
    assert shown(heights, height, line) == expected


def test_the_cursor_stays_on_the_screen() -> None:
    assert shown([30, 14, 13], 22, 0) == (0, 0)
    assert shown([30, 14, 13], 22, 1)[0] <= 1
    # In a paragraph that is taller than the window, the suggestion after the cursor is visible.
    assert shown([3, 30], 10, 1, column=30 * WIDTH - 1, suggestion="and so") == (1, 20)
