"""A terminal for tests: tmux runs the program, and tests type and read the screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Screen:
    """A terminal that runs a shell command in the folder of tmux's socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-f", os.devnull, "-S", str(self.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, timeout=30).stdout

    def start(self, command: str, columns: int = 100, rows: int = 30) -> None:
        # The server keeps the environment of the process that starts it. Bars and other scripts need a UTF-8 locale.
        where = ("-x", str(columns), "-y", str(rows), "-c", str(self.socket.parent))
        self.tmux("-u", "new-session", "-d", *where, f"LC_ALL=C.UTF-8 {command}; echo CODE=$?; sleep 60")

    def end(self) -> None:
        """Close the terminal like a window: its processes receive SIGHUP."""
        subprocess.run(["tmux", "-S", str(self.socket), "kill-server"], capture_output=True, check=False, timeout=30)

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", "--", text)

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def text(self, *, with_styles: bool = False) -> str:
        return self.tmux("capture-pane", "-p", *(["-e"] if with_styles else []))

    def wait_for(self, words: str, seconds: float = 45, *, with_styles: bool = False) -> str:
        """Wait until the screen shows some words; return the screen."""
        end = time.monotonic() + seconds
        while words not in (shown := self.text(with_styles=with_styles)):
            assert time.monotonic() < end, f"no {words!r} on the screen:\n{shown}"
            time.sleep(0.05)
        return shown
