"""Training in a terminal: the progress bar, and Ctrl-C, which saves a checkpoint."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from charwright.run import Run
from screen import Screen, needs_tmux

pytestmark = needs_tmux


def test_training_shows_a_bar_and_ctrl_c_saves(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "hamlet.txt").write_text("To be, or not to be: that is the question.\n" * 50, encoding="utf-8")
    run = tmp_path / "run"
    small = "--units 16 --embedding-size 8 --batch 4 --seq-length 16 --minutes 5 --threads 1"
    python, text, out = (shlex.quote(str(path)) for path in (sys.executable, tmp_path / "hamlet.txt", run))
    screen.start(f"{python} -m charwright train {text} --out {out} {small}")

    shown = screen.wait_for(" left")
    assert "━" in shown
    assert "chars/s" in shown
    assert "epoch " in shown
    assert shown.count(" left") == 1  # One bar, updated in place.

    screen.press("C-c")
    shown = screen.wait_for("CODE=")
    assert "CODE=130" in shown
    assert "resume with" in shown
    assert "Traceback" not in shown
    opened = Run.open(run)
    assert opened.latest_checkpoint() is not None
    assert opened.weights()
