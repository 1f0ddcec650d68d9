"""The table of `charwright score`: places in a column of constant width, and texts that a terminal can show."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charwright.generation.record_scores import Score

JOINERS = "\u200c\u200d"
"""Invisible characters that scripts and emoji need."""
WIDEST_NAME = 30
"""Columns of a file's name in the table."""


@dataclass(frozen=True)
class Places:
    """Where a record is, in a column of constant width: file, line and column, as far as they vary."""

    names: dict[str, str]
    has_columns: bool
    """Whether records begin within lines."""

    @cached_property
    def shown(self) -> dict[str, str]:
        """The names as the table has them, by location: none for a single file."""
        return {place: _shortened(safe(name)) for place, name in self.names.items()} if len(self.names) > 1 else {}

    @cached_property
    def width(self) -> int:
        """The width of the column."""
        prefix = max(map(_cells, self.shown.values())) + 1 if self.shown else 0
        return prefix + 7 + 5 * self.has_columns

    @property
    def heading(self) -> str:
        """The name of the column."""
        words = [*(["file"] if len(self.names) > 1 else []), "line", *(["column"] if self.has_columns else [])]
        return f"{':'.join(words):<{self.width}}"

    def of(self, score: Score) -> str:
        """The place of a record."""
        file = f"{self.shown[score.file]}:" if self.shown else ""
        place = f"{file}{score.line}{f':{score.column}' if self.has_columns else ''}"
        return place + " " * (self.width - _cells(place))


def _cells(text: str) -> int:
    """The columns of a text on a terminal, where wide characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _shortened(name: str) -> str:
    """The end of a long name, from the beginning of a folder or file in it if one fits."""
    if _cells(name) <= WIDEST_NAME:
        return name
    end = name[-WIDEST_NAME + 1 :]
    while _cells(end) >= WIDEST_NAME:
        end = end[1:]
    return "…" + (end[end.index("/") :] if "/" in end[:-1] else end)


def line_of(score: Score, places: Places, room: int | None) -> str:
    """A record as a line of the table; its text is cut to `room` columns."""
    per_char = score.bits_per_char
    shown = f"{'-':>9}" if per_char is None else f"{per_char:9.4f}"
    text = safe(score.text if score.label is None else f"[{score.label}] {score.text}")
    if room is not None:
        text = _fitting(text, room)
    return f"{shown}{'*' if score.cold else ' '} {score.bits:10.1f} {score.chars:8,}  {places.of(score)}  {text}\n"


def safe(text: str) -> str:
    r"""A text that a terminal shows as it is: control characters, also those of directions, as escapes such as \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in JOINERS or _is_space(c) else _escaped(c) for c in text)


def _is_space(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def room_for(places: Places) -> int | None:
    """The columns left for the text on a terminal; None in a pipe, where nothing is cut."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return max(20, Console().width - places.width - 34)


def _fitting(text: str, room: int) -> str:
    """As much of a text as fits."""
    from rich.cells import set_cell_size

    return text if _cells(text) <= room else set_cell_size(text, room - 1).rstrip() + "…"
