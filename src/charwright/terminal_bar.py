"""A progress bar on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def terminal_bar(*columns: str | ProgressColumn, stream: TextIO | None = None, expand: bool = False) -> Progress:
    """A bar that goes away at its end, on `stream`, by default standard error.

    What is printed meanwhile appears above it, unless standard output is redirected: then it stays the caller's.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=stream or sys.stderr, highlight=False, emoji=False)
    redirect = sys.stdout.isatty()
    return Progress(*columns, console=console, transient=True, expand=expand, redirect_stdout=redirect)
