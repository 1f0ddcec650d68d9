"""How `charwright compose` shows a text: rows broken between words, the suggestion behind the last of them.

Like the editor, only that command imports this file, and with it prompt_toolkit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import Window
from prompt_toolkit.layout.controls import BufferControl, UIContent
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.screen import Char
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.utils import get_cwidth

from charwright.cli.manuscript import Manuscript
from charwright.cli.rows import row_starts


class Rows(Processor):
    """Breaks lines between words, and shows the suggestion behind the last character.

    The screen itself breaks where a row is full, so each row but the last is filled with spaces.
    """

    def __init__(self, manuscript: Manuscript, newline: str) -> None:
        self.manuscript, self.newline = manuscript, newline

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """One line of the text as it is shown, and the ways from its columns to the screen's and back."""
        characters = explode_text_fragments(transformation_input.fragments)
        if transformation_input.lineno == transformation_input.document.line_count - 1:
            suggested = self.manuscript.suggestion.replace("\n", self.newline)
            characters += [("class:suggestion", character) for character in suggested]
        columns = transformation_input.width
        starts = row_starts("".join(character for _, character, *_ in characters), columns, width_of)
        shown: StyleAndTextTuples = []
        places: list[int] = []  # For each character, where it is shown.
        for begin, end in pairwise([*starts, len(characters)]):
            left = columns
            for style, character, *_ in characters[begin:end]:
                places.append(len(shown))
                if left >= width_of(character):
                    left -= width_of(character)
                    shown += [(style, part) for part in (TAB if character == "\t" else character)]
            if end < len(characters):
                shown += [("", " ")] * left
        # The cursor can stand behind the last character, and is asked for one more.
        places += [len(shown), len(shown) + 1]
        return Transformation(shown, places.__getitem__, lambda place: bisect_right(places, place) - 1)


TAB = "    "


def width_of(character: str) -> int:
    """How many columns a character takes as it is shown."""
    return len(TAB) if character == "\t" else get_cwidth(Char.display_mappings.get(character, character))


class TextWindow(Window):
    """Where the paragraph is longer than the window, the suggestion below the cursor is to be seen too."""

    def __init__(self, manuscript: Manuscript, control: BufferControl) -> None:
        super().__init__(control, wrap_lines=True)
        self.manuscript = manuscript

    def _scroll_when_linewrapping(self, ui_content: UIContent, width: int, height: int) -> None:
        super()._scroll_when_linewrapping(ui_content, width, height)
        line, column = ui_content.cursor_position.y, ui_content.cursor_position.x
        rows = ui_content.get_height_for_line(line, width, None)
        if self.manuscript.suggestion and rows > height:
            to_cursor = ui_content.get_height_for_line(line, width, None, slice_stop=column + 1)
            self.vertical_scroll_2 = min(rows - height, to_cursor - 1)


def fitting(parts: Sequence[str], columns: int) -> list[str]:
    """The first of some parts that fit into a row, with two spaces between."""
    shown: list[str] = []
    for part in parts:
        columns -= get_cwidth(part) + (2 if shown else 0)
        if columns < 0:
            break
        shown.append(part)
    return shown
