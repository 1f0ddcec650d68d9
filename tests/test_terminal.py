"""Training as a person at a terminal sees it: a bar, and Ctrl-C that saves."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from charwright.run import Run

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Screen:
    """A terminal of 100 x 30 that a shell command runs in."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-f", os.devnull, "-S", str(self.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, timeout=30).stdout

    def start(self, command: str) -> None:
        # The server keeps the environment of whoever starts it; a UTF-8 locale lets the bar be drawn.
        self.tmux(
            "-u", "new-session", "-d", "-x", "100", "-y", "30", f"LC_ALL=C.UTF-8 {command}; echo CODE=$?; sleep 60"
        )

    def text(self) -> str:
        return self.tmux("capture-pane", "-p")

    def wait_for(self, words: str, seconds: float = 45) -> str:
        """The screen, once it shows some words."""
        end = time.monotonic() + seconds
        while words not in (shown := self.text()):
            assert time.monotonic() < end, f"no {words!r} on the screen:\n{shown}"
            time.sleep(0.05)
        return shown


@pytest.fixture
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    # Sockets must have short names.
    screen = Screen(Path(tmp_path_factory.mktemp("t")) / "s")
    yield screen
    screen.tmux("kill-server")


def test_a_bar_while_training_and_ctrl_c_saves(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "hamlet.txt").write_text("To be, or not to be: that is the question.\n" * 50, encoding="utf-8")
    run = tmp_path / "run"
    small = "--units 16 --embedding 8 --batch 4 --seq-length 16 --minutes 5 --threads 1"
    python, text, out = (shlex.quote(str(path)) for path in (sys.executable, tmp_path / "hamlet.txt", run))
    screen.start(f"{python} -m charwright train {text} --out {out} {small}")

    shown = screen.wait_for(" left")
    assert "━" in shown
    assert "chars/s" in shown
    assert "epoch " in shown
    assert shown.count(" left") == 1  # One bar, which moves.

    screen.tmux("send-keys", "C-c")
    shown = screen.wait_for("CODE=")
    assert "CODE=130" in shown
    assert "go on with" in shown
    assert "Traceback" not in shown
    opened = Run.open(run)
    assert opened.latest_checkpoint() is not None
    assert opened.weights()
