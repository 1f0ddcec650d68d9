"""`charwright compose` as a command, and as a user sees it in a terminal."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from commands import process
from screen import Screen, needs_tmux


def test_without_a_terminal_it_names_the_alternative(trained: Path) -> None:
    result = process("compose", trained)
    assert result.code == 2
    assert "charwright generate" in result.line


def test_help_imports_neither_prompt_toolkit_nor_torch() -> None:
    without = "sys.modules['prompt_toolkit'] = sys.modules['torch'] = None"
    for words in (["--help"], ["compose", "--help"], ["compose", "RUN"]):
        result = process(*words, prelude=without)
        assert "Traceback" not in result.err


def test_without_prompt_toolkit_it_names_the_extra(trained: Path) -> None:
    result = process("compose", trained, prelude="sys.modules['prompt_toolkit'] = None")
    assert result.code == 1
    assert "pip install 'charwright[compose]'" in result.line


def command(*words: str | Path) -> str:
    return shlex.join([sys.executable, "-m", "charwright", *map(str, words)])


@needs_tmux
def test_a_session_with_a_model(screen: Screen, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    screen.start("OMP_NUM_THREADS=1 " + command("compose", trained, "--seed", "3", "--out", path))
    screen.wait_for("Tab accept")
    screen.type("To be")
    screen.wait_for("5 characters")
    screen.wait_for("To be\x1b[2m", with_styles=True)  # Followed by the dim suggestion.
    screen.press("Tab")
    wait_for(lambda: characters(screen) > 5)
    length = characters(screen)
    screen.press("F3", "F3", "F2")
    screen.wait_for("temperature 0.9")
    screen.press("C-g")
    screen.wait_for("any key to stop")
    wait_for(lambda: characters(screen) > length + 10)
    screen.press("Space")
    screen.wait_for("Tab accept")
    screen.press("C-q")
    shown = screen.wait_for("CODE=0")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("To be")
    assert len(text) > length + 10
    assert "".join(text.split()) in "".join(shown.split())
    assert f"saved to {path}" in shown.replace("\n", "")


def characters(screen: Screen) -> int:
    """Return the length of the text, from the status line."""
    found = re.search(r"(\d+) characters", screen.text())
    return int(found[1]) if found else 0


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@needs_tmux
def test_a_small_window_other_scripts_and_ctrl_c(screen: Screen, trained: Path) -> None:
    screen.start("NO_COLOR=1 " + command("compose", trained, "--seed", "3", "--prompt", "中文字 "), columns=20, rows=5)
    screen.wait_for("t 0.8  #3  4")
    screen.type("or not to be, that is it")
    shown = screen.wait_for("that is it")
    assert "中文字 or not to be," in shown  # 20 columns, wrapped between words.
    screen.tmux("resize-window", "-x", "60", "-y", "12")
    screen.wait_for("not in the vocabulary: 中 文 字")
    screen.press("C-c")
    shown = screen.wait_for("CODE=130")
    assert "中文字 or not to be, that is it\nCODE=130" in shown


@needs_tmux
def test_closing_the_window_saves_the_text(screen: Screen, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    screen.start(command("compose", trained, "--out", path))
    screen.wait_for("Tab accept")
    screen.type("To be")
    screen.wait_for("5 characters")
    screen.end()
    wait_for(path.exists)
    assert path.read_text(encoding="utf-8") == "To be"


@needs_tmux
def test_an_existing_file_is_continued(screen: Screen, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("To be\nor ", encoding="utf-8")
    words = command("compose", trained, "--out", path)
    screen.start(f"{words} --prompt X; {words}")
    screen.wait_for("9 characters")
    screen.type("not")
    screen.wait_for("12 characters")
    screen.press("C-d")
    shown = screen.wait_for("CODE=0")
    assert "remove --prompt" in shown.replace("\n", " ")
    assert path.read_text(encoding="utf-8") == "To be\nor not"


@needs_tmux
def test_an_unknown_label_is_one_line(screen: Screen, trained: Path) -> None:
    screen.start(command("compose", trained, "--label", "girl"))
    assert "charwright: there is no label 'girl'; the model has no labels" in screen.wait_for("CODE=2").replace(
        "\n", ""
    )
