"""Lines that a thread of their own writes: the reader of standard error may stall, and the service goes on."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from io import FileIO
from typing import TextIO

CONSOLE_TAKES_CHARACTERS = sys.platform == "win32"
"""Whether a console takes characters instead of bytes."""
MOST_WAITING = 1 << 20
"""Characters that may wait to be written; further lines are dropped."""
PAUSE_S = 0.05
"""Between two writings. A thread that wakes for each line takes the interpreter's lock from the thread that answers."""
CLOSING_S = 1.0
"""How long the last lines may take to be written."""


class Lines:
    """A stream that takes whole lines and never blocks: use it in a `with` block."""

    def __init__(self, stream: TextIO | None, *, notice: Callable[[str], str] = str) -> None:
        """Write to `stream`, if there is one; `notice` gives a message about lost lines its form."""
        self._write, self._notice = _writer(stream), notice
        self._changed = threading.Condition()
        self._waiting: list[str] = []  # guarded by the condition, as are the next two
        self._characters = 0
        self._dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def __enter__(self) -> Lines:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write the last lines, if that is possible within a moment."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        self._thread.join(CLOSING_S)

    def write(self, text: str) -> int:
        """Take lines; they are dropped if too much waits already."""
        with self._changed:
            if self._waiting and self._characters + len(text) > MOST_WAITING:
                self._dropped += 1
            else:
                self._note_dropped()
                self._append(text)
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread writes without delay."""

    def say(self, message: str) -> None:
        """Take a message for the user."""
        self.write(message + "\n")

    def _append(self, text: str) -> None:
        self._waiting.append(text)
        self._characters += len(text)

    def _note_dropped(self) -> None:
        """Say at their place that lines were dropped."""
        if self._dropped:
            count = "1 line was" if self._dropped == 1 else f"{self._dropped:,} lines were"
            self._append(self._notice(f"{count} dropped here, since nobody read the log") + "\n")
            self._dropped = 0

    def _run(self) -> None:
        while text := self._next():
            with contextlib.suppress(OSError, ValueError):  # A closed terminal must not end the service.
                self._write(text)
            self._closing.wait(PAUSE_S)

    def _next(self) -> str:
        """Wait for lines and return all of them; nothing is the end."""
        with self._changed:
            while not (self._waiting or self._closing.is_set()):
                self._changed.wait()
            self._note_dropped()
            text = "".join(self._waiting)
            self._waiting, self._characters = [], 0
        return text


def _writer(stream: TextIO | None) -> Callable[[str], object]:
    """Write past the buffer of a stream: a thread that blocks in it would make the interpreter crash at its end."""
    if stream is None:
        return len
    try:
        file = stream.fileno()
    except (OSError, ValueError):  # It is in memory.
        return stream.write
    if CONSOLE_TAKES_CHARACTERS:
        return stream.write
    raw, encoding = FileIO(file, "wb", closefd=False), stream.encoding

    def write(text: str) -> None:
        rest = memoryview(text.encode(encoding, "backslashreplace"))
        while rest:
            written = raw.write(rest)
            if written is None:  # The stream does not block, and takes nothing now.
                time.sleep(0.05)
            else:
                rest = rest[written:]

    return write
