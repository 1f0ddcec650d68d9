"""The places where the command line looks for corpora, and a progress bar for downloads."""

from __future__ import annotations

import io
import sys
from typing import Any, BinaryIO

from charwright.cli.options import END_OF_INPUT, say
from charwright.data.parts import Places
from charwright.terminal_bar import terminal_bar


def user_places() -> Places:
    """The user's places, with a download bar on a terminal."""
    # Without standard input (as in a daemon), `-` is refused and everything else works.
    stdin: BinaryIO | None = sys.stdin.buffer if sys.stdin else None
    if stdin is not None and sys.stdin.isatty():
        stdin = io.BufferedReader(_Typed(stdin))
    return Places.of_this_user(stdin, DownloadBar() if sys.stderr.isatty() else None)


class _Typed(io.RawIOBase):
    """Standard input that is a terminal: the first read says what to do."""

    def __init__(self, terminal: BinaryIO) -> None:
        self._terminal, self._asked = terminal, False

    def readable(self) -> bool:
        """Whether this is to be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is typed."""
        if not self._asked:
            say(f"type the text; end it with {END_OF_INPUT} on a new line")
            self._asked = True
        data = self._terminal.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class DownloadBar:
    """The progress bar that pooch expects: it sets `total`, and calls `update` with each piece."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn

        self.total = 0
        self._progress = terminal_bar(BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._task = self._progress.add_task("download")

    def update(self, size: int) -> None:
        """Advance by a number of bytes."""
        self._progress.start()
        self._progress.update(self._task, advance=size, total=self.total)

    def reset(self) -> None:
        """Called by pooch before it completes the bar."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()
