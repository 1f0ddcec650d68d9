"""The file of a manuscript: read once, written atomically, never over changes made by another program."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from charwright.errors import CharwrightError, RunError, UsageError
from charwright.storage import file_identity

UNSAVED = "charwright-unsaved.txt"
"""The name of a text without one, where it is saved without asking."""


class TextFile:
    """A UTF-8 file that a text is saved to. The caller checks `obstacle` before `save`, and asks the user."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._text = ""  # The file's content, as last read or written.
        self._newline, self._mark = "\n", ""  # How its lines end, and its byte order mark.
        self._fingerprint: tuple[int, int, int] | None = None
        self.was_saved = False
        """Whether the text was saved since it was read."""

    def read(self) -> str | None:
        """Return the text of the file, or None if it does not exist. Afterwards, saving may replace the file.

        Raises:
            UsageError: if the folder does not exist.
            CharwrightError: if the file cannot be read, or is not UTF-8.
        """
        assert self.path is not None
        if not self.path.parent.is_dir():
            raise UsageError(f"--out: the folder {self.path.parent} does not exist")
        try:
            text = self.path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CharwrightError(f"cannot read {self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CharwrightError(f"{self.path} is not UTF-8: invalid byte at offset {error.start}") from error
        self._mark, self._newline = text[:1] if text.startswith("\ufeff") else "", _newline_of(text)
        self._text = text[len(self._mark) :].replace("\r\n", "\n").replace("\r", "\n")
        self._fingerprint = file_identity(self.path)
        return self._text

    def is_saved(self, text: str) -> bool:
        """Whether the file already contains the text. An empty text needs no file."""
        return text == self._text

    def obstacle(self, path: Path) -> str | None:
        """Why the user has to be asked before the path is written: it has content of others, or is protected."""
        found = file_identity(path)
        if found is None:
            return None
        if path != self.path:
            return "exists"
        if found != self._fingerprint:
            return "was changed by another program"
        return None if os.access(path, os.W_OK) else "is write-protected"

    def save(self, text: str, path: Path) -> None:
        """Write the text atomically, and make `path` this text's file.

        The mode of the file stays, and so do the byte order mark and most newlines of the text that was read.

        Raises:
            RunError: if the file cannot be written, or is a device, say.
        """
        from charwright.storage import write_file

        try:
            mode = path.stat().st_mode
        except OSError:
            mode = None
        if mode is not None and not stat.S_ISREG(mode):
            raise RunError(f"{path} is not a regular file; choose another name")
        # Keyboard input that was not valid UTF-8 is written back as the same bytes. A symbolic link stays one.
        written = self._mark + text.replace("\n", self._newline)
        permissions = None if mode is None else stat.S_IMODE(mode)
        write_file(Path(os.path.realpath(path)), written.encode("utf-8", "surrogateescape"), permissions)
        self.path, self._text, self._fingerprint, self.was_saved = path, text, file_identity(path), True

    def rescue(self, text: str) -> Path | None:
        """Save without asking, under a numbered name if the name is taken; return the path, or None on failure.

        What cannot be saved there, as on a full disk, is saved in the current folder, else in the home folder, else in
        that of temporary files.
        """
        if self.is_saved(text):
            return self.path
        for wanted in chain((self.path,) if self.path else (), (place / UNSAVED for place in _fallbacks())):
            with suppress(CharwrightError, OSError):
                path = next(path for path in _numbered(wanted) if self.obstacle(path) is None)
                self.save(text, path)
                return path
        return None


def _fallbacks() -> Iterator[Path]:
    """Folders to save in where another cannot be written."""
    yield Path()
    with suppress(RuntimeError):  # There may be no home folder.
        yield Path.home()
    with suppress(OSError):
        yield Path(tempfile.gettempdir())


def _newline_of(text: str) -> str:
    """How most lines of a text end."""
    pairs = text.count("\r\n")
    counts = {"\n": text.count("\n") - pairs, "\r\n": pairs, "\r": text.count("\r") - pairs}
    return max(counts, key=lambda newline: counts[newline])


def _numbered(path: Path) -> Iterator[Path]:
    """Yield story.txt, story-2.txt, story-3.txt, ..."""
    yield path
    yield from (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
