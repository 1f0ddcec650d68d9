"""`charwright compose`: the program with a pipe for a keyboard, and as a person sees it in a terminal."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.input.base import PipeInput
from prompt_toolkit.output import DummyOutput

from charwright.cli.editor import KEYS, Editor
from charwright.cli.manuscript import Manuscript, TextFile
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from commands import Terminal, process
from screen import Screen, needs_tmux

TAB, RIGHT, ESC, ENTER = "\t", "\x1b[C", "\x1b", "\r"
WORD, UP, END = "\x1bf", "\x1b[A", "\x1b[1;5F"
OTHER, BEFORE, GO_ON, UNDO, REDO, SAVE = "\x0e", "\x10", "\x07", "\x1a", "\x19", "\x13"
COOLER, WARMER, HELP = "\x1bOQ", "\x1bOR", "\x1bOP"
CTRL_C, CTRL_D, CTRL_Q = "\x03", "\x04", "\x11"


class Scribe:
    """A generator that writes how it was asked, so that each answer tells of its question."""

    vocabulary = Vocabulary.from_text("abcdefghijklmnopqrstuvwxyz .\n0123456789")

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def stream(self, prompt: str, /, *, length: int, temperature: float, seed: int) -> Iterator[str]:
        if self.error:
            raise self.error
        yield f" by seed {seed - len(prompt)}\n"
        while True:
            yield f"at {temperature}\n"


class Screenless(DummyOutput):
    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.size = Size(rows, columns)

    def get_size(self) -> Size:
        return self.size


class Program:
    """The program and its keyboard; a test types and waits for what comes of it."""

    def __init__(self, keyboard: PipeInput, text: str = "", path: Path | None = None, **options: Any) -> None:
        self.keyboard = keyboard
        self.page = Manuscript(text, temperature=0.8, seed=7)
        self.file = TextFile(path)
        size = options.pop("size", (24, 80))
        self.editor = Editor(Scribe(**options), self.page, self.file, keyboard, Screenless(*size))  # type: ignore[arg-type]

    def type(self, keys: str) -> None:
        self.keyboard.send_text(keys)

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, f"{self.page.text!r} {self.page.suggestion!r} {self.editor._message()!r}"
            await asyncio.sleep(0.005)

    async def suggests(self, text: str) -> None:
        await self.until(lambda: self.page.suggestion == text)

    async def has(self, text: str) -> None:
        await self.until(lambda: self.page.text == text)

    async def says(self, words: str) -> None:
        await self.until(lambda: words in self.editor._message())

    def run(self, person: Callable[[Program], Coroutine[Any, Any, None]]) -> int:
        """The exit code, when a person does so with the program."""
        failures: list[BaseException] = []

        async def act() -> None:
            try:
                await person(self)
            except BaseException as error:
                failures.append(error)
                self.editor._interrupted()

        begin = self.editor._begin

        def begin_both() -> None:
            begin()
            self.editor.app.create_background_task(act())

        self.editor._begin = begin_both  # type: ignore[method-assign]
        code = self.editor.run()
        for failure in failures:
            if not isinstance(failure, asyncio.CancelledError):
                raise failure
        return code


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as keyboard:
        yield keyboard


def test_the_suggestion_and_the_keys_that_take_it(keyboard: PipeInput) -> None:
    async def person(it: Program) -> None:
        await it.suggests(" by seed 7")
        it.type("it was")
        await it.has("it was")
        await it.suggests(" by seed 7")
        it.type(WORD)
        await it.has("it was by")
        it.type(RIGHT)
        await it.has("it was by seed 7")
        await it.suggests(" by seed 7")
        it.type(TAB)
        await it.has("it was by seed 7 by seed 7")
        it.type(UNDO + UNDO)
        await it.has("it was by")
        it.type(REDO + ENTER + CTRL_Q)

    program = Program(keyboard)
    assert program.run(person) == 0
    assert program.page.text == "it was by seed 7\n"


def test_other_seeds_and_temperatures(keyboard: PipeInput) -> None:
    async def person(it: Program) -> None:
        await it.suggests(" by seed 7")
        it.type(OTHER)
        await it.suggests(" by seed 8")
        it.type(BEFORE + BEFORE)
        await it.suggests(" by seed 6")
        it.type(WARMER * 3 + COOLER)
        await it.until(lambda: it.page.temperature == 1.0)
        it.type(CTRL_D)

    assert Program(keyboard).run(person) == 0


def test_suggestions_are_for_the_end_of_the_text(keyboard: PipeInput) -> None:
    async def person(it: Program) -> None:
        it.type("ab\x1b[D" + TAB)
        await it.says("at the end of the text")
        assert it.page.suggestion == ""
        it.type(END)
        await it.suggests(" by seed 7")
        it.type(CTRL_D)

    assert Program(keyboard).run(person) == 0


def test_the_model_goes_on_until_a_key_and_takes_new_temperatures(keyboard: PipeInput) -> None:
    async def person(it: Program) -> None:
        await it.suggests(" by seed 7")
        it.type("a")
        await it.has("a")
        await it.suggests(" by seed 7")
        it.type(GO_ON)
        await it.says("any key stops")
        await it.until(lambda: it.page.text.startswith("a by seed 7 by seed 7\nat 0.8"))
        it.type(WARMER)
        await it.until(lambda: "at 0.9" in it.page.text)
        it.type("x" + ESC)
        await it.until(lambda: it.editor.mode == "writing")
        assert "x" not in it.page.text
        it.type(UNDO)
        await it.has("a")
        it.type(GO_ON)
        await it.says("any key stops")
        it.type(CTRL_C)
        await it.until(lambda: it.editor.mode == "writing")
        it.type(GO_ON)
        await it.says("any key stops")
        it.type(CTRL_Q)

    assert Program(keyboard).run(person) == 0


def test_going_on_in_the_middle_of_a_text(keyboard: PipeInput) -> None:
    async def person(it: Program) -> None:
        it.type("ab\x1b[D" + GO_ON)
        await it.until(lambda: it.page.text.startswith("a by seed 7\n") and it.page.text.endswith("b"))
        it.type(CTRL_Q)

    assert Program(keyboard).run(person) == 0


@pytest.mark.parametrize("key", ["\x0f", "\x1b#", "\x1b\r", "\x0c", "\x1b<", UP, "\x1b[5~", "\x12"])
def test_keys_that_do_something_else_in_a_shell_lose_no_text(keyboard: PipeInput, key: str) -> None:
    async def person(it: Program) -> None:
        it.type("to be\x1b[200~\r\nor\x1b[201~")
        await it.has("to be\nor")
        it.type(key)
        await asyncio.sleep(0.02)
        it.type(END + "!" + CTRL_Q)

    program = Program(keyboard)
    assert program.run(person) == 0
    assert program.page.text.replace("\n!", "!") == "to be\nor!"


def test_an_unknown_character_is_said(keyboard: PipeInput) -> None:
    async def person(it: Program) -> None:
        it.type("a中\x1b[200~\t\x1b[201~")
        await it.until(lambda: "never seen: 中 \\t" in it.editor._status())
        it.type(CTRL_Q)

    assert Program(keyboard).run(person) == 0


def test_saving_asks_for_a_name_and_before_it_replaces_a_file(keyboard: PipeInput, tmp_path: Path) -> None:
    story, taken = tmp_path / "story.txt", tmp_path / "taken.txt"
    taken.write_text("theirs", encoding="utf-8")

    async def person(it: Program) -> None:
        it.type("one" + SAVE + ESC)
        await it.until(lambda: it.editor.mode == "writing")
        it.type(SAVE + ENTER)
        await it.says("not saved")
        it.type(SAVE + f"{tmp_path}{ENTER}")
        await it.says("is a folder")
        it.type(SAVE + f"{tmp_path}/nowhere/x{ENTER}")
        await it.says("cannot write")
        it.type(SAVE + f"{taken}{ENTER}")
        await it.says("Replace it?")
        it.type("n" + "\x15" + f"{story}{ENTER}")
        await it.says(f"saved to {story}")
        assert taken.read_text(encoding="utf-8") == "theirs"
        it.type(" two" + SAVE)
        await it.until(lambda: story.read_text(encoding="utf-8") == "one two")
        it.type("!" + CTRL_Q)

    assert Program(keyboard).run(person) == 0
    assert story.read_text(encoding="utf-8") == "one two!"


def test_leaving_asks_too_and_ctrl_c_saves_nothing(keyboard: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"

    async def person(it: Program) -> None:
        path.write_text("theirs", encoding="utf-8")
        it.type("mine" + CTRL_Q)
        await it.says("Replace it?")
        it.type(ESC)
        await it.until(lambda: it.editor.mode == "writing")
        it.type(CTRL_C)

    assert Program(keyboard, path=path).run(person) == 130
    assert path.read_text(encoding="utf-8") == "theirs"


def test_a_file_is_replaced_when_the_person_says_so(keyboard: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"

    async def person(it: Program) -> None:
        path.write_text("theirs", encoding="utf-8")
        it.type("mine" + CTRL_D)
        await it.says("Replace it?")
        it.type("y")

    assert Program(keyboard, path=path).run(person) == 0
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals(keyboard: PipeInput, tmp_path: Path, sent: signal.Signals) -> None:
    path = tmp_path / "story.txt"

    async def person(it: Program) -> None:
        it.type("abc")
        await it.has("abc")
        os.kill(os.getpid(), sent)

    assert Program(keyboard, path=path).run(person) == 128 + sent
    assert path.exists() == (sent != signal.SIGINT)


def test_a_keyboard_that_goes_away(keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def person(it: Program) -> None:
        it.type("abc")
        await it.has("abc")
        it.keyboard.close()

    assert Program(keyboard).run(person) == 129
    assert Path("charwright-unsaved.txt").read_text(encoding="utf-8") == "abc"


@pytest.mark.parametrize("error", [UsageError("nothing to write with"), RuntimeError("a mistake in here")])
def test_an_error_ends_the_program_and_leaves_the_text(keyboard: PipeInput, error: Exception) -> None:
    async def person(it: Program) -> None:
        await asyncio.Event().wait()

    program = Program(keyboard, "abc", error=error)
    with pytest.raises(type(error), match=str(error)):
        program.run(person)
    assert program.page.text == "abc"


@pytest.mark.parametrize("size", [(24, 80), (24, 200), (24, 30), (5, 20), (1, 1)])
def test_the_bars_fit(keyboard: PipeInput, tmp_path: Path, size: tuple[int, int]) -> None:
    program = Program(keyboard, "中" * 1000, tmp_path / "story.txt", size=size)
    program.editor.unknown = ["中"] * 9
    assert len(program.editor._status()) <= size[1]
    assert sum(len(words) for _, words, *_ in program.editor._keys()) <= size[1]


def test_the_help_has_pages(keyboard: PipeInput) -> None:
    async def person(it: Program) -> None:
        seen = []
        it.type(HELP)
        await it.until(lambda: it.editor.mode == "help")
        while it.editor.mode == "help":
            seen += [meaning for _, meaning, *_ in it.editor._help()[1::2]]
            before = it.editor._help_from, it.editor.mode
            it.type(" ")
            await it.until(lambda before=before: (it.editor._help_from, it.editor.mode) != before)
        assert seen == [f"{meaning}\n" for *_, meaning in KEYS]
        it.type(HELP + ESC)
        await it.until(lambda: it.editor.mode == "writing")
        it.type(CTRL_Q)

    assert Program(keyboard, size=(5, 20)).run(person) == 0


# The command.


def test_without_a_terminal_it_says_what_to_use(trained: Path) -> None:
    result = process("compose", trained)
    assert result.code == 2
    assert "charwright generate" in result.line


def test_help_does_not_import_what_the_screen_needs() -> None:
    without = "sys.modules['prompt_toolkit'] = sys.modules['torch'] = None"
    for words in (["--help"], ["compose", "--help"], ["compose", "RUN"]):
        result = process(*words, prelude=without)
        assert "Traceback" not in result.err


def test_chat_is_another_name_that_no_help_shows(charwright: Terminal) -> None:
    assert charwright("chat", "--help").out == charwright("compose", "--help").out.replace(" compose ", " chat ")
    assert "chat" not in charwright("--help").out


def command(*words: str | Path) -> str:
    return shlex.join([sys.executable, "-m", "charwright", *map(str, words)])


@needs_tmux
def test_writing_together(screen: Screen, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    screen.start("OMP_NUM_THREADS=1 " + command("compose", trained, "--seed", "3", "--out", path))
    screen.wait_for("Tab take it")
    screen.type("To be")
    screen.wait_for("5 characters")
    screen.wait_for("To be\x1b[2m", with_styles=True)  # Behind it something dim: the suggestion.
    screen.press("Tab")
    wait_for(lambda: characters(screen) > 5)
    length = characters(screen)
    screen.press("F3", "F3", "F2")
    screen.wait_for("temperature 0.9")
    screen.press("C-g")
    screen.wait_for("any key stops it")
    wait_for(lambda: characters(screen) > length + 10)
    screen.press("Space")
    screen.wait_for("Tab take it")
    screen.press("C-q")
    shown = screen.wait_for("CODE=0")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("To be")
    assert len(text) > length + 10
    assert "".join(text.split()) in "".join(shown.split())
    assert f"saved to {path}" in shown.replace("\n", "")


def characters(screen: Screen) -> int:
    """How long the text is, by the status on the screen."""
    found = re.search(r"(\d+) characters", screen.text())
    return int(found[1]) if found else 0


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@needs_tmux
def test_a_small_window_other_scripts_and_ctrl_c(screen: Screen, trained: Path) -> None:
    screen.start("NO_COLOR=1 " + command("chat", trained, "--seed", "3", "--prompt", "中文字 "), columns=20, rows=5)
    screen.wait_for("t 0.8  #3  4")
    screen.type("or not to be, that is it")
    shown = screen.wait_for("that is it")
    assert "中文字 or not to be," in shown  # 20 columns, and broken between words.
    screen.tmux("resize-window", "-x", "60", "-y", "12")
    screen.wait_for("never seen: 中 文 字")
    screen.press("C-c")
    shown = screen.wait_for("CODE=130")
    assert "中文字 or not to be, that is it\nCODE=130" in shown


@needs_tmux
def test_a_window_that_closes_loses_nothing(screen: Screen, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    screen.start(command("compose", trained, "--out", path))
    screen.wait_for("Tab take it")
    screen.type("To be")
    screen.wait_for("5 characters")
    screen.end()
    wait_for(path.exists)
    assert path.read_text(encoding="utf-8") == "To be"


@needs_tmux
def test_a_text_that_is_there_is_gone_on_with(screen: Screen, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("To be\nor ", encoding="utf-8")
    words = command("compose", trained, "--out", path)
    screen.start(f"{words} --prompt X; {words}")
    screen.wait_for("9 characters")
    screen.type("not")
    screen.wait_for("12 characters")
    screen.press("C-d")
    shown = screen.wait_for("CODE=0")
    assert "leave --prompt out" in shown.replace("\n", " ")
    assert path.read_text(encoding="utf-8") == "To be\nor not"
