"""Where texts come from at the terminal, and a bar for downloads in the form that pooch asks for."""

from __future__ import annotations

import sys

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from charwright.data.corpus import Places


def user_places() -> Places:
    """The user's own places, with a download bar where a person is looking."""
    # Without standard input (a daemon's child), `-` is refused and all else works.
    stdin = sys.stdin.buffer if sys.stdin else None
    return Places.of_this_user(stdin, DownloadBar() if sys.stderr.isatty() else None)


class DownloadBar:
    """`total` is set by pooch once it knows the size; `update` is called with each piece."""

    def __init__(self) -> None:
        from rich.console import Console

        self.total = 0
        self._progress = Progress(
            BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
        )
        self._task = self._progress.add_task("download")

    def update(self, size: int) -> None:
        """So many bytes more have come."""
        self._progress.start()
        self._progress.update(self._task, advance=size, total=self.total)

    def reset(self) -> None:
        """Pooch says this before it fills the bar up at the end."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()
