"""The editor with a pipe as its keyboard and no screen."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.input.base import PipeInput
from prompt_toolkit.output import DummyOutput

from charwright.compose.editor import Editor
from charwright.compose.keys import KEYS
from charwright.compose.manuscript import Manuscript
from charwright.compose.text_file import TextFile
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError

TAB, RIGHT, ESC, ENTER = "\t", "\x1b[C", "\x1b", "\r"
LEFT, BACKSPACE, DELETE = "\x1b[D", "\x7f", "\x1b[3~"
WORD, UP, END = "\x1bf", "\x1b[A", "\x1b[1;5F"
NEXT, PREVIOUS, GENERATE, UNDO, REDO, SAVE = "\x0e", "\x10", "\x07", "\x1a", "\x19", "\x13"
LOWER, RAISE, HELP = "\x1bOQ", "\x1bOR", "\x1bOP"
CTRL_C, CTRL_D, CTRL_Q = "\x03", "\x04", "\x11"


class EchoGenerator:
    """A generator whose text contains its options, so that tests can tell requests apart."""

    vocabulary = Vocabulary.from_text("abcdefghijklmnopqrstuvwxyz .\n0123456789")

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def stream(
        self, prompt: str, /, *, label: str | None, with_end: bool, length: int, temperature: float, seed: int
    ) -> Iterator[str]:
        if self.error:
            raise self.error
        yield f" by seed {seed - len(prompt)}\n"
        while True:
            yield f"at {temperature}\n"


class HeadlessOutput(DummyOutput):
    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.size = Size(rows, columns)

    def get_size(self) -> Size:
        return self.size


class Session:
    """An editor with a pipe as its keyboard; tests type and wait for the effects."""

    def __init__(self, keyboard: PipeInput, text: str = "", path: Path | None = None, **options: Any) -> None:
        self.keyboard = keyboard
        self.page = Manuscript(text, temperature=0.8, seed=7)
        self.file = TextFile(path)
        size = options.pop("size", (24, 80))
        self.editor = Editor(EchoGenerator(**options), self.page, self.file, keyboard, HeadlessOutput(*size))  # type: ignore[arg-type]

    def type(self, keys: str) -> None:
        self.keyboard.send_text(keys)

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, (
                f"{self.page.text!r} {self.page.suggestion!r} {self.editor.screen.message()!r}"
            )
            await asyncio.sleep(0.005)

    async def suggests(self, text: str) -> None:
        await self.until(lambda: self.page.suggestion == text)

    async def has(self, text: str) -> None:
        await self.until(lambda: self.page.text == text)

    async def shows(self, message: str) -> None:
        await self.until(lambda: message in self.editor.screen.message())

    def run(self, script: Callable[[Session], Coroutine[Any, Any, None]]) -> int:
        """Run the editor while the script uses it; return the exit code."""
        failures: list[BaseException] = []

        async def run_script() -> None:
            try:
                await script(self)
            except BaseException as error:
                failures.append(error)
                self.editor._quit_unsaved()

        begin = self.editor._begin

        def begin_with_script() -> None:
            begin()
            self.editor.app.create_background_task(run_script())

        self.editor._begin = begin_with_script  # type: ignore[method-assign]
        code = self.editor.run()
        for failure in failures:
            if not isinstance(failure, asyncio.CancelledError):
                raise failure
        return code


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as keyboard:
        yield keyboard


def test_keys_that_accept_a_suggestion(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
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

    session = Session(keyboard)
    assert session.run(script) == 0
    assert session.page.text == "it was by seed 7\n"


def test_keys_that_change_the_seed_and_the_temperature(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
        await it.suggests(" by seed 7")
        it.type(NEXT)
        await it.suggests(" by seed 8")
        it.type(PREVIOUS + PREVIOUS)
        await it.suggests(" by seed 6")
        it.type(RAISE * 3 + LOWER)
        await it.until(lambda: it.page.temperature == 1.0)
        it.type(CTRL_D)

    assert Session(keyboard).run(script) == 0


def test_suggestions_appear_only_at_the_end_of_the_text(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
        it.type("ab\x1b[D" + TAB)
        await it.shows("at the end of the text")
        assert it.page.suggestion == ""
        it.type(END)
        await it.suggests(" by seed 7")
        it.type(CTRL_D)

    assert Session(keyboard).run(script) == 0


def test_continuous_generation_stops_at_a_key_and_follows_the_temperature(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
        await it.suggests(" by seed 7")
        it.type("a")
        await it.has("a")
        await it.suggests(" by seed 7")
        it.type(GENERATE)
        await it.shows("any key to stop")
        await it.until(lambda: it.page.text.startswith("a by seed 7 by seed 7\nat 0.8"))
        it.type(RAISE)
        await it.until(lambda: "at 0.9" in it.page.text)
        it.type("x" + ESC)
        await it.until(lambda: it.editor.state.mode == "writing")
        assert "x" not in it.page.text
        it.type(UNDO)
        await it.has("a")
        it.type(GENERATE)
        await it.shows("any key to stop")
        it.type(CTRL_C)
        await it.until(lambda: it.editor.state.mode == "writing")
        it.type(GENERATE)
        await it.shows("any key to stop")
        it.type(CTRL_Q)

    assert Session(keyboard).run(script) == 0


def test_continuous_generation_in_the_middle_of_a_text(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
        it.type("ab\x1b[D" + GENERATE)
        await it.until(lambda: it.page.text.startswith("a by seed 7\n") and it.page.text.endswith("b"))
        it.type(CTRL_Q)

    assert Session(keyboard).run(script) == 0


@pytest.mark.parametrize("key", ["\x0f", "\x1b#", "\x1b\r", "\x0c", "\x1b<", UP, "\x1b[5~", "\x12"])
def test_shell_keys_keep_the_text(keyboard: PipeInput, key: str) -> None:
    async def script(it: Session) -> None:
        it.type("to be\x1b[200~\r\nor\x1b[201~")
        await it.has("to be\nor")
        it.type(key)
        await asyncio.sleep(0.02)
        it.type(END + "!" + CTRL_Q)

    session = Session(keyboard)
    assert session.run(script) == 0
    assert session.page.text.replace("\n!", "!") == "to be\nor!"


def test_unknown_characters_are_shown(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
        it.type("a中\x1b[200~\t\x1b[201~")
        await it.until(lambda: "not in the vocabulary: 中 \\t" in it.editor.screen.status())
        it.type(CTRL_Q)

    assert Session(keyboard).run(script) == 0


def test_saving_asks_for_a_name_and_before_replacing_a_file(keyboard: PipeInput, tmp_path: Path) -> None:
    story, taken = tmp_path / "story.txt", tmp_path / "taken.txt"
    taken.write_text("theirs", encoding="utf-8")

    async def script(it: Session) -> None:
        it.type("one" + SAVE + ESC)
        await it.until(lambda: it.editor.state.mode == "writing")
        it.type(SAVE + ENTER)
        await it.shows("not saved")
        it.type(SAVE + f"{tmp_path}{ENTER}")
        await it.shows("is a folder")
        it.type(SAVE + f"{tmp_path}/nowhere/x{ENTER}")
        await it.shows("cannot write")
        it.type(SAVE + f"{tmp_path}/{'x' * 300}{ENTER}")
        await it.shows("File name too long")
        it.type(SAVE + f"{taken}{ENTER}")
        await it.shows("Replace it?")
        it.type("n" + "\x15" + f"{story}{ENTER}")
        await it.shows(f"saved to {story}")
        assert taken.read_text(encoding="utf-8") == "theirs"
        it.type(" two" + SAVE)
        await it.until(lambda: story.read_text(encoding="utf-8") == "one two")
        it.type("!" + CTRL_Q)

    assert Session(keyboard).run(script) == 0
    assert story.read_text(encoding="utf-8") == "one two!"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is protected from this user")
def test_a_protected_file_is_replaced_after_confirmation(keyboard: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("mine", encoding="utf-8")
    path.chmod(0o444)

    async def script(it: Session) -> None:
        it.type("!" + SAVE)
        await it.shows("is write-protected. Replace it?")
        it.type("n" + ESC)
        await it.until(lambda: it.editor.state.mode == "writing")
        it.type(CTRL_C)

    assert Session(keyboard, path=path).run(script) == 130
    assert path.read_text(encoding="utf-8") == "mine"


def test_after_a_failure_another_name_can_be_given(keyboard: PipeInput, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    path, other = folder / "story.txt", tmp_path / "other.txt"

    async def script(it: Session) -> None:
        folder.rmdir()
        it.type("mine" + SAVE)
        await it.shows("cannot write")
        it.type(SAVE + "\x15" + f"{other}\x1b[200~\x01\x1b[201~{ENTER}")
        await it.shows("no control characters")
        it.type(SAVE + "\x15" + f"{other}{ENTER}")
        await it.shows(f"saved to {other}")
        it.type(CTRL_Q)

    assert Session(keyboard, path=path).run(script) == 0
    assert other.read_text(encoding="utf-8") == "mine"
    assert sorted(tmp_path.iterdir()) == [other]


def test_quitting_while_a_name_is_asked_for(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
        it.type("mine" + SAVE)
        await it.until(lambda: it.editor.state.mode == "naming")
        it.type(CTRL_Q)

    session = Session(keyboard)
    assert session.run(script) == 0
    assert session.page.text == "mine"
    assert not session.file.was_saved


FAMILY, ACCENTED = "\U0001f469\u200d\U0001f469\u200d\U0001f467", "e\u0301"


def test_a_key_takes_a_visible_character(keyboard: PipeInput) -> None:
    """Emoji joined by U+200D and letters with combining accents are several code points."""

    async def script(it: Session) -> None:
        it.type(f"a{FAMILY}{ACCENTED}b" + LEFT * 2)
        await it.until(lambda: it.editor.buffer.cursor_position == 1 + len(FAMILY))
        it.type(BACKSPACE)
        await it.has(f"a{ACCENTED}b")
        it.type(DELETE)
        await it.has("ab")
        it.type(FAMILY + LEFT + RIGHT + "c" + BACKSPACE * 2)
        await it.has("ab")
        it.type(LEFT * 5 + BACKSPACE + "d")
        await it.has("dab")
        it.type(CTRL_C)

    assert Session(keyboard).run(script) == 130


def test_quitting_asks_before_replacing_a_file_and_ctrl_c_saves_nothing(keyboard: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"

    async def script(it: Session) -> None:
        path.write_text("theirs", encoding="utf-8")
        it.type("mine" + CTRL_Q)
        await it.shows("was changed by another program. Replace it?")
        it.type(ESC)
        await it.until(lambda: it.editor.state.mode == "writing")
        it.type(CTRL_C)

    assert Session(keyboard, path=path).run(script) == 130
    assert path.read_text(encoding="utf-8") == "theirs"


def test_a_file_is_replaced_after_confirmation(keyboard: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"

    async def script(it: Session) -> None:
        path.write_text("theirs", encoding="utf-8")
        it.type("mine" + CTRL_D)
        await it.shows("Replace it?")
        it.type("y")

    assert Session(keyboard, path=path).run(script) == 0
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_the_editor(keyboard: PipeInput, tmp_path: Path, sent: signal.Signals) -> None:
    path = tmp_path / "story.txt"

    async def script(it: Session) -> None:
        it.type("abc")
        await it.has("abc")
        os.kill(os.getpid(), sent)

    assert Session(keyboard, path=path).run(script) == 128 + sent
    assert path.exists() == (sent != signal.SIGINT)


def test_a_signal_while_the_text_of_a_closed_terminal_is_saved(
    keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of input and SIGHUP may come in any order, and at once."""
    saved: list[str] = []
    save = TextFile.save

    def interrupted(file: TextFile, text: str, path: Path) -> None:
        saved.append(text)
        os.kill(os.getpid(), signal.SIGHUP)
        save(file, text, path)

    async def script(it: Session) -> None:
        it.type("abc")
        await it.has("abc")
        it.keyboard.close()

    monkeypatch.setattr(TextFile, "save", interrupted)
    path = tmp_path / "story.txt"
    assert Session(keyboard, path=path).run(script) == 128 + signal.SIGHUP
    assert (saved, path.read_text(encoding="utf-8")) == (["abc"], "abc")


def test_a_closed_terminal_saves_the_text(keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(it: Session) -> None:
        it.type("abc")
        await it.has("abc")
        it.keyboard.close()

    assert Session(keyboard).run(script) == 129
    assert Path("charwright-unsaved.txt").read_text(encoding="utf-8") == "abc"


@pytest.mark.parametrize("error", [UsageError("the prompt is empty"), RuntimeError("internal error")])
def test_an_error_ends_the_editor_and_keeps_the_text(keyboard: PipeInput, error: Exception) -> None:
    async def script(it: Session) -> None:
        await asyncio.Event().wait()

    session = Session(keyboard, "abc", error=error)
    with pytest.raises(type(error), match=str(error)):
        session.run(script)
    assert session.page.text == "abc"


@pytest.mark.parametrize("size", [(24, 80), (24, 200), (24, 30), (5, 20), (1, 1)])
def test_the_bars_fit_every_window(keyboard: PipeInput, tmp_path: Path, size: tuple[int, int]) -> None:
    session = Session(keyboard, "中" * 1000, tmp_path / "story.txt", size=size)
    session.editor.state.unknown = ["中"] * 9
    assert len(session.editor.screen.status()) <= size[1]
    assert sum(len(text) for _, text, *_ in session.editor.screen.key_bar()) <= size[1]


def test_the_help_has_pages(keyboard: PipeInput) -> None:
    async def script(it: Session) -> None:
        seen = []
        it.type(HELP)
        await it.until(lambda: it.editor.state.mode == "help")
        while it.editor.state.mode == "help":
            seen += [meaning for _, meaning, *_ in it.editor.screen.help_page()[1::2]]
            before = it.editor.state.help_offset, it.editor.state.mode
            it.type(" ")
            await it.until(lambda before=before: (it.editor.state.help_offset, it.editor.state.mode) != before)
        assert seen == [f"{meaning}\n" for *_, meaning in KEYS]
        it.type(HELP + ESC)
        await it.until(lambda: it.editor.state.mode == "writing")
        it.type(CTRL_Q)

    assert Session(keyboard, size=(5, 20)).run(script) == 0
