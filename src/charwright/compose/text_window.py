"""The text on the screen: lines wrapped between words, and the suggestion after the last character."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import Window
from prompt_toolkit.layout.controls import BufferControl, UIContent
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.screen import Char
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.utils import get_cwidth

from charwright.compose.manuscript import Manuscript
from charwright.compose.rows import row_starts

TAB = "    "


def width_of(character: str) -> int:
    """Return the number of columns of a character as displayed."""
    return len(TAB) if character == "\t" else get_cwidth(Char.display_mappings.get(character, character))


class WrapRows(Processor):
    """Wrap lines between words, and append the suggestion to the last line.

    prompt_toolkit wraps at the last column, so every row but the last is padded with spaces.
    """

    def __init__(self, manuscript: Manuscript, newline: str) -> None:
        """Take the manuscript, and the symbol for a newline in a suggestion."""
        self.manuscript, self.newline = manuscript, newline

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Return a line as displayed, and the mappings between its columns and the display's."""
        characters = explode_text_fragments(transformation_input.fragments)
        if transformation_input.lineno == transformation_input.document.line_count - 1:
            suggested = self.manuscript.suggestion.replace("\n", self.newline)
            characters += [("class:suggestion", character) for character in suggested]
        columns = transformation_input.width
        starts = row_starts("".join(character for _, character, *_ in characters), columns, width_of)
        shown: StyleAndTextTuples = []
        places: list[int] = []  # The display column of each character.
        for begin, end in pairwise([*starts, len(characters)]):
            left = columns
            for style, character, *_ in characters[begin:end]:
                places.append(len(shown))
                if left >= width_of(character):
                    left -= width_of(character)
                    shown += [(style, part) for part in (TAB if character == "\t" else character)]
            if end < len(characters):
                shown += [("", " ")] * left
        # The cursor may follow the last character, and prompt_toolkit asks for one column more.
        places += [len(shown), len(shown) + 1]
        return Transformation(shown, places.__getitem__, lambda place: bisect_right(places, place) - 1)


class TextWindow(Window):
    """A window that scrolls so that the suggestion after the cursor is visible in a paragraph taller than the window.

    It overrides a private method of Window, which has no public hook for scrolling wrapped lines.
    """

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
        self._fill(ui_content, width, height)

    def _fill(self, ui_content: UIContent, width: int, height: int) -> None:
        """Scroll back as far as the end of the text leaves rows empty: by default whole paragraphs scroll."""
        rows = -self.vertical_scroll_2
        for line in range(self.vertical_scroll, ui_content.line_count):
            rows += ui_content.get_height_for_line(line, width, None)
            if rows >= height:
                return
        while rows < height and (self.vertical_scroll_2 or self.vertical_scroll):
            if not self.vertical_scroll_2:
                self.vertical_scroll -= 1
                self.vertical_scroll_2 = ui_content.get_height_for_line(self.vertical_scroll, width, None)
            back = min(height - rows, self.vertical_scroll_2)
            self.vertical_scroll_2 -= back
            rows += back
