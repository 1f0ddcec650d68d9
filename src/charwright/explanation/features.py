"""Features of a text: for each character, what a reader who has read up to it could know about the place.

Each feature is computed from the text alone and says nothing about the network. N is the number of characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

MOST = 200
"""Positions and lengths count up to this: a few very long lines would hide all others."""

FEWEST = 30
"""Characters inside and outside a feature, and changes between the two, below which it is too rare to test."""

FEWEST_CHANGES = 10

PAIRS = {"( )": ("(（", ")）"), "[ ]": ("[【〔", "]】〕"), "{ }": ("{", "}"), "< >": ("<《〈", ">》〉")}
QUOTES = {"“": "”", "„": "“", "«": "»", "「": "」", "『": "』", "‹": "›"}
SCRIPTS: tuple[str, ...] = (
    "LATIN",
    "GREEK",
    "CYRILLIC",
    "HEBREW",
    "ARABIC",
    "DEVANAGARI",
    "THAI",
    "CJK",
    "HIRAGANA",
    "KATAKANA",
)
SCRIPTS += ("HANGUL",)


@dataclass(frozen=True)
class Feature:
    """A value for each character: 0 or 1 if `is_binary`, else a number."""

    name: str
    meaning: str
    values: npt.NDArray[np.float32]  # (N,)
    is_binary: bool = True

    def too_rare(self) -> str:
        """Why it cannot be tested on this text, or ""."""
        changes = int(np.count_nonzero(np.diff(self.values)))
        if changes == 0:
            return "it never changes"
        held = int(np.count_nonzero(self.values))
        if changes < FEWEST_CHANGES or (self.is_binary and min(held, len(self.values) - held) < FEWEST):
            return "it is too rare in this text"
        return ""

    def part(self, begin: int, end: int) -> Feature:
        """The feature on a part of the text."""
        return Feature(self.name, self.meaning, self.values[begin:end], self.is_binary)


def features_of(text: str) -> list[Feature]:
    """All features of a text, those that never change included."""
    lines = _Lines(text)
    return [
        *(_inside(text, name, *pair) for name, pair in PAIRS.items()),
        Feature("depth of brackets", "how many round, square and curly brackets are open", _depth(text), False),
        Feature('inside " "', 'between two straight quotes " in one paragraph', _straight(text)),
        Feature("inside quotation marks", "between a pair such as “ ”, « » or 「 」", _quoted(text)),
        Feature("after a newline", "the character is a newline", _where(text, lambda c: c == "\n")),
        Feature("position in the line", "characters since the newline, up to 200", lines.position, False),
        Feature("length of the line before", "characters of the previous line, up to 200", lines.before, False),
        Feature("indentation", "spaces and tabs at the beginning of the line, up to 200", lines.indentation, False),
        Feature("in the indentation", "the line has had only spaces and tabs so far", lines.indenting),
        Feature("in a comment", "the line has had a # before", lines.comment),
        Feature("position in the word", "letters of the word so far, up to 200", _in_word(text), False),
        Feature("capitalized word", "in a word that begins with an upper-case letter", _capitalized(text)),
        Feature("upper case", "the character is an upper-case letter", _where(text, str.isupper)),
        Feature("digit", "the character is a digit", _where(text, str.isdecimal)),
        Feature("space", "the character is a space or a tab", _where(text, lambda c: c in " \t\u3000")),
        Feature("punctuation", "the character is a punctuation mark", _where(text, _is_punctuation)),
        *(_script(text, name) for name in SCRIPTS),
    ]


def _where(text: str, holds: Callable[[str], bool]) -> npt.NDArray[np.float32]:
    known = {character: holds(character) for character in set(text)}
    return np.array([known[character] for character in text], dtype=np.float32)


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


@cache
def _script_name(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


def _script(text: str, name: str) -> Feature:
    shown = name if name == "CJK" else name.capitalize()
    values = _where(text, lambda c: c.isalpha() and _script_name(c) == name)
    return Feature(f"{shown} letter", f"the character is a letter of the script {shown}", values)


def _begins_paragraph(text: str, at: int) -> bool:
    """Whether a blank line ends here: what was left open before it is a mistake, and no longer counts."""
    return text[at] == "\n" and at > 0 and text[at - 1] == "\n"


def _inside(text: str, name: str, opening: str, closing: str) -> Feature:
    """Whether a bracket of a kind is open after each character; `< >` ends with its line, as a comparison would."""
    values, depth = np.zeros(len(text), dtype=np.float32), 0
    for at, character in enumerate(text):
        if character in opening:
            depth += 1
        elif character in closing:
            depth = max(0, depth - 1)
        elif _begins_paragraph(text, at) or (character == "\n" and name == "< >"):
            depth = 0
        values[at] = depth > 0
    return Feature(f"inside {name}", f"between the brackets {name}, closed by a blank line at the latest", values)


def _depth(text: str) -> npt.NDArray[np.float32]:
    values, depth = np.zeros(len(text), dtype=np.float32), 0
    for at, character in enumerate(text):
        if character in "([{（【":
            depth += 1
        elif character in ")]}）】":
            depth = max(0, depth - 1)
        elif _begins_paragraph(text, at):
            depth = 0
        values[at] = min(depth, MOST)
    return values


def _straight(text: str) -> npt.NDArray[np.float32]:
    values, inside = np.zeros(len(text), dtype=np.float32), False
    for at, character in enumerate(text):
        inside = (inside != (character == '"')) and not _begins_paragraph(text, at)
        values[at] = inside
    return values


def _quoted(text: str) -> npt.NDArray[np.float32]:
    values = np.zeros(len(text), dtype=np.float32)
    awaited: list[str] = []
    for at, character in enumerate(text):
        if awaited and character == awaited[-1]:
            awaited.pop()
        elif character in QUOTES:
            awaited.append(QUOTES[character])
        elif _begins_paragraph(text, at):
            awaited.clear()
        values[at] = bool(awaited)
    return values


def _in_word(text: str) -> npt.NDArray[np.float32]:
    values, length = np.zeros(len(text), dtype=np.float32), 0
    for at, character in enumerate(text):
        length = length + 1 if character.isalpha() else 0
        values[at] = min(length, MOST)
    return values


def _capitalized(text: str) -> npt.NDArray[np.float32]:
    values, inside, before = np.zeros(len(text), dtype=np.float32), False, False
    for at, character in enumerate(text):
        letter = character.isalpha()
        inside = letter and (inside if before else character.isupper())
        values[at], before = inside, letter
    return values


class _Lines:
    """What depends on the line: the position in it, its indentation, and the length of the one before."""

    def __init__(self, text: str) -> None:
        """Read the text once."""
        self.position, self.before, self.indentation, self.indenting, self.comment = (
            np.zeros(len(text), dtype=np.float32) for _ in range(5)
        )
        position = before = indentation = 0
        indenting, comment = True, False
        for at, character in enumerate(text):
            if character == "\n":
                before, position, indentation, indenting, comment = position, 0, 0, True, False
            else:
                position += 1
                indenting = indenting and character in " \t"
                indentation += indenting
                comment = comment or character == "#"
            self.position[at], self.before[at] = min(position, MOST), min(before, MOST)
            self.indentation[at], self.comment[at] = min(indentation, MOST), comment
            self.indenting[at] = indenting
