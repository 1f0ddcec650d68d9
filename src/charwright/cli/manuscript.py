"""A text that a person and a model write together: edits, undo, suggestions, and the file that keeps it.

Nothing here knows of a screen or of keys; `editor.py` does.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from charwright.cli.rows import begins_word, first_word, is_wide
from charwright.errors import CharwrightError, UsageError

LEAST_CONTEXT, CONTEXT, PATIENCE_S = 200, 2000, 0.3
"""The model reads so many of the last characters before it goes on: 2,000, or about what it can read in 0.3 s."""

LONG, LONGEST = 40, 60
"""A suggestion is so many columns long, or up to the end of the word that it is in, if that comes soon enough."""

HOTTEST = 2.0
SEEDS = 2**63


class Writer(Protocol):
    """What a manuscript asks of a generator."""

    def stream(self, prompt: str, /, *, length: int, temperature: float, seed: int) -> Iterator[str]:
        """The characters that follow a prompt, as they are made."""


@dataclass(frozen=True)
class Wish:
    """What the model shall go on from, and how. The same wish is answered by the same text."""

    context: str
    seed: int
    temperature: float

    def stream(self, writer: Writer, length: int) -> Iterator[str]:
        """The answer, as it is made."""
        pieces = writer.stream(self.context, length=length, temperature=self.temperature, seed=self.seed)
        # A model of bytes can write one that is part of no character; nobody wants the sign for it in a text.
        return (character for piece in pieces for character in piece if character != "\ufffd")


def suggestion(writer: Writer, wish: Wish) -> str:
    """What the model would write next: the rest of the line, if it is not long.

    Where the line is done, the suggestion begins with its end and goes on to the end of the next.
    """
    return _one_line(wish.stream(writer, LONGEST))


def _one_line(characters: Iterable[str]) -> str:
    written, columns = "", 0
    for character in characters:
        if character == "\n" and (written.strip("\n") or len(written) == LONGEST_GAP):
            break
        if columns >= LONG and (
            columns >= LONGEST or character.isspace() or begins_word(written + character, len(written))
        ):
            break
        written += character
        columns += 2 if is_wide(character) else 1
    return written


LONGEST_GAP = 3
"""A suggestion begins with at most so many newlines."""


@dataclass(frozen=True)
class Change:
    """At one place of a text, something was removed and something else came instead."""

    at: int
    removed: str
    inserted: str

    @classmethod
    def between(cls, before: str, after: str) -> Change:
        """The smallest change that makes one text of another, found in a few comparisons however long they are."""
        shorter = min(len(before), len(after))
        begin = bisect_left(range(1, shorter + 1), True, key=lambda n: before[:n] != after[:n])
        rest = shorter - begin
        end = bisect_left(range(1, rest + 1), True, key=lambda n: before[-n:] != after[-n:])
        return cls(begin, before[begin : len(before) - end], after[begin : len(after) - end])

    def apply(self, text: str) -> str:
        """The text with the change made."""
        return text[: self.at] + self.inserted + text[self.at + len(self.removed) :]

    def undone(self) -> Change:
        """The change that takes this one back."""
        return Change(self.at, self.inserted, self.removed)

    def joined(self, other: Change, *, freely: bool) -> Change | None:
        """The two changes, one after the other, as one, where a person would take them back together; None where not.

        That is: the letters of a word, or characters deleted in a row. `freely` joins all that is written on and on.
        """
        if not self.removed and not other.removed and other.at == self.at + len(self.inserted):
            if freely or (len(other.inserted) == 1 and not _begins_word(self.inserted[-1], other.inserted)):
                return Change(self.at, "", self.inserted + other.inserted)
        elif not self.inserted and not other.inserted and len(other.removed) == 1:
            if other.at + 1 == self.at:
                return Change(other.at, other.removed + self.removed, "")
            if other.at == self.at:
                return Change(self.at, self.removed + other.removed, "")
        return None


def _begins_word(before: str, character: str) -> bool:
    return before.isspace() and not character.isspace()


class Manuscript:
    """The text, the cursor in it, the model's suggestion behind it, and how the model writes.

    `edit` is told each new state of the text, whoever made it.
    """

    def __init__(self, text: str = "", *, temperature: float, seed: int) -> None:
        self.text, self.cursor = text, len(text)
        self.temperature, self.seed = temperature, seed
        self._suggestion = ""
        self._context = CONTEXT
        self._done: list[Change] = []
        self._undone: list[Change] = []
        self._joins = False  # Whether the next edit may be one with the last.
        self.flowing = False  # Whether the model is going on by itself.

    def edit(self, text: str, cursor: int) -> None:
        """Take over a new state of the text."""
        if text != self.text:
            change = Change.between(self.text, text)
            self._suggestion = self._rest_of_suggestion(change)
            self._record(change)
            self.text = text
        self.cursor = cursor

    def insert(self, piece: str) -> None:
        """Write at the cursor."""
        self.edit(self.text[: self.cursor] + piece + self.text[self.cursor :], self.cursor + len(piece))

    def pause(self) -> None:
        """What is typed after a pause is a step of its own for undo."""
        self._joins = self._joins and self.flowing

    def _record(self, change: Change) -> None:
        self._undone.clear()
        last = self._done[-1].joined(change, freely=self.flowing) if self._joins else None
        if last is not None:
            self._done[-1] = last
        else:
            self._done.append(change)
        self._joins = True

    # Undo.

    def undo(self) -> bool:
        """Take the last step back; False where there is none."""
        return self._step(self._done, self._undone)

    def redo(self) -> bool:
        """Make the step again that was taken back last; False where there is none."""
        return self._step(self._undone, self._done)

    def _step(self, source: list[Change], target: list[Change]) -> bool:
        if not source:
            return False
        change = source.pop()
        target.append(change)
        if source is self._done:
            change = change.undone()
        self.text = change.apply(self.text)
        self.cursor = change.at + len(change.inserted)
        self._suggestion, self._joins = "", False
        return True

    # Suggestions.

    @property
    def at_end(self) -> bool:
        """Whether the cursor stands behind the last character, where suggestions are made."""
        return self.cursor == len(self.text)

    @property
    def suggestion(self) -> str:
        """What the model would write at the cursor; empty where it was not asked, or has not answered yet."""
        return self._suggestion if self.at_end else ""

    @property
    def wants_suggestion(self) -> bool:
        """Whether the model should be asked."""
        return self.at_end and not self._suggestion and not self.flowing

    def wish(self) -> Wish:
        """What to ask the model.

        The place in the text is part of the seed: with the same draws everywhere, a seed whose first one is unlikely
        would begin each suggestion with an unlikely character.
        """
        context = self.text[max(0, self.cursor - self._context) : self.cursor]
        return Wish(context, (self.seed + self.cursor) % SEEDS, self.temperature)

    def receive(self, wish: Wish, answer: str) -> bool:
        """Take an answer, unless the text has changed since it was wished for."""
        if not self.wants_suggestion or wish != self.wish():
            return False
        self._suggestion = answer
        return True

    def learn_pace(self, wish: Wish, seconds: float) -> None:
        """From how long an answer took: whether a slow model should read less, and may read more again."""
        if seconds > PATIENCE_S:
            self._context = max(int(len(wish.context) * PATIENCE_S / seconds), LEAST_CONTEXT)
        elif seconds < PATIENCE_S / 2:
            self._context = min(self._context * 2, CONTEXT)

    def take(self) -> None:
        """Make the suggestion part of the text."""
        self._take(self.suggestion)

    def take_word(self) -> None:
        """Make the first word of the suggestion part of the text; the rest stays a suggestion."""
        self._take(first_word(self.suggestion))

    def _take(self, piece: str) -> None:
        self.pause()
        self.insert(piece)
        self.pause()

    def _rest_of_suggestion(self, change: Change) -> str:
        """Whoever types what was suggested still sees the rest."""
        typed_at_end = not change.removed and change.at == len(self.text)
        if typed_at_end and self._suggestion.startswith(change.inserted):
            return self._suggestion[len(change.inserted) :]
        return ""

    def next_seed(self, step: int = 1) -> None:
        """Another suggestion, or with -1 the one before."""
        self.seed = (self.seed + step) % SEEDS
        self._suggestion = ""

    def heat(self, step: int) -> None:
        """One tenth warmer or cooler, to a whole tenth."""
        tenths = self.temperature * 10
        tenths = math.floor(tenths + 1e-6) + 1 if step > 0 else math.ceil(tenths - 1e-6) - 1
        self.temperature = min(max(tenths / 10, 0.0), HOTTEST)
        self._suggestion = ""

    # Going on.

    def begin_flow(self) -> None:
        """From here on the model writes by itself; for undo, all of it is one step."""
        self.pause()
        self.flowing = True
        self.insert(self.suggestion)

    def end_flow(self) -> None:
        """The person writes again."""
        self.flowing = self._joins = False


class TextFile:
    """The file that keeps a manuscript. A file that somebody else wrote is never replaced unless the person says so."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._text = ""  # What it holds, as far as we know.
        self._mark: tuple[int, int, int] | None = None

    def read(self) -> str | None:
        """The text of the file, which then is ours to replace; None where there is no such file.

        Raises:
            CharwrightError: when it cannot be read, or is not UTF-8.
        """
        assert self.path is not None
        if not self.path.parent.is_dir():
            raise UsageError(f"--out: there is no folder {self.path.parent}")
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CharwrightError(f"cannot read {self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CharwrightError(f"{self.path} is not UTF-8: byte {error.start} does not fit") from error
        self._text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._mark = _mark(self.path)
        return self._text

    def holds(self, text: str) -> bool:
        """Whether all of a text is on the disk; there is no need to keep an empty one."""
        return text == self._text

    def is_anothers(self, path: Path) -> bool:
        """Whether something is at a path that we neither read nor wrote."""
        found = _mark(path)
        return found is not None and (path != self.path or found != self._mark)

    def save(self, text: str, path: Path) -> None:
        """Write a text, whole or not at all; from then on this is its file.

        Raises:
            RunError: when the system refuses.
        """
        from charwright.storage import write_file

        mode = path.stat().st_mode if path.exists() else None
        # What came from the keyboard and was no UTF-8 goes to the file as it came.
        write_file(path, text.encode("utf-8", "surrogateescape"))
        if mode is not None:
            with suppress(OSError):
                path.chmod(mode)
        self.path, self._text, self._mark = path, text, _mark(path)

    def rescue(self, text: str) -> Path | None:
        """Save in a hurry, with nobody there to ask: under another name where the name is taken. None if it failed."""
        if self.holds(text):
            return self.path
        wanted = self.path or Path("charwright-unsaved.txt")
        path = next(path for path in _names(wanted) if not self.is_anothers(path))
        with suppress(CharwrightError, OSError):
            self.save(text, path)
            return path
        return None


def _names(wanted: Path) -> Iterator[Path]:
    """story.txt, story-2.txt, story-3.txt ..."""
    yield wanted
    yield from (wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}") for number in count(2))


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What changes when somebody writes a file; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
