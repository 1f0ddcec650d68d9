"""The buffer of the text, which moves over and removes whole visible characters."""

from __future__ import annotations

from prompt_toolkit.buffer import Buffer
from wcwidth import grapheme_boundary_before, iter_graphemes

LONGEST = 64
"""The code points that are looked at for the end of a character. A family emoji has 7."""


class TextBuffer(Buffer):
    """A buffer whose character is a grapheme cluster (Unicode Standard Annex #29).

    An accent after its letter, and emoji joined by U+200D, are several code points and one character on the screen. A
    `count` other than 1 is in code points, which prompt_toolkit's commands for words and lines count.
    """

    def cursor_left(self, count: int = 1) -> None:
        """Move to the left within the line."""
        super().cursor_left(self._before() if count == 1 else count)

    def cursor_right(self, count: int = 1) -> None:
        """Move to the right within the line."""
        super().cursor_right(self._after() if count == 1 else count)

    def delete_before_cursor(self, count: int = 1) -> str:
        """Remove what is before the cursor, and return it."""
        return super().delete_before_cursor(self._before() if count == 1 else count)

    def delete(self, count: int = 1) -> str:
        """Remove what is behind the cursor, and return it."""
        return super().delete(self._after() if count == 1 else count)

    def _before(self) -> int:
        at = self.cursor_position
        return max(1, at - grapheme_boundary_before(self.text, at))

    def _after(self) -> int:
        behind = self.text[self.cursor_position : self.cursor_position + LONGEST]
        return len(next(iter_graphemes(behind), " "))
