"""A bar for downloads, in the form that pooch asks for."""

from __future__ import annotations

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn


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
