"""The screen and the keys of `charwright compose`.

Only that command imports this file, and with it prompt_toolkit.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, Filter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from charwright.cli.manuscript import CONTEXT, Manuscript, TextFile, suggestion
from charwright.cli.rows import moved
from charwright.cli.signals import handling
from charwright.cli.text_window import Rows, TextWindow, fitting, width_of
from charwright.errors import CharwrightError

if TYPE_CHECKING:
    from charwright.generation.generator import Generator

PAUSE_S = 0.25
"""So long nobody types before the model is asked."""

FRAME_S, CHARACTERS_A_FRAME = 0.04, 2
"""When the model goes on by itself it writes 50 characters a second, so that one can read along and stop it in time."""

FLOW = 10_000
"""Characters that the model writes by itself before it reads its context again."""

# No colours: what is dim, bold or reversed can be told apart on every background, and with NO_COLOR.
STYLE = Style.from_dict({"suggestion": "dim", "status": "reverse", "key": "bold", "note": "bold"})

KEYS = (
    ("Tab", "take it", "Tab, Right", "take the suggestion"),
    ("", "", "Alt-F, Ctrl-Right", "take a word of it"),
    ("^N", "another", "Ctrl-N, Alt-N", "another suggestion: the next seed"),
    ("", "", "Ctrl-P, Alt-P", "the one before"),
    ("^G", "go on", "Ctrl-G, F5", "let the model go on, until any key"),
    ("^S", "save", "Ctrl-S", "save"),
    ("^Q", "leave", "Ctrl-Q, Ctrl-D", "leave; saves if there is a file"),
    ("", "", "Ctrl-C", "leave without saving"),
    ("F2/F3", "cool/warm", "F2, Ctrl-Down", "cooler: likelier text"),
    ("", "", "F3, Ctrl-Up", "warmer: bolder text"),
    ("^Z", "undo", "Ctrl-Z, Ctrl-Y", "undo, redo"),
)
"""For each key: how the bar names it and what for, how the help does."""


class Editor:
    """The program: `run` shows it until the person leaves.

    It is in one of five modes: "writing", "flowing" (the model goes on by itself), "naming" and "replacing" (questions
    on the way to a file) and "help".
    """

    def __init__(
        self,
        writer: Generator,
        manuscript: Manuscript,
        file: TextFile,
        terminal_input: Input | None = None,
        terminal_output: Output | None = None,
    ) -> None:
        """Take a generator, the manuscript and its file; the terminal is this process's unless another is given."""
        self.writer, self.manuscript, self.file = writer, manuscript, file
        self.mode = "writing"
        self.note = ""
        self.unknown: list[str] = []
        self._signalled = 0  # The number of the signal that ends the program.
        self._leaving = False  # Whether saving ends with leaving.
        self._striving = (-1, 0)  # Where going up or down has led, and the column it strives for.
        self._help_from = 0  # Which of the keys the help begins with.
        self._path = Path()  # What is asked about in the mode "replacing".
        # One thread: the model is asked one thing at a time, and keys never wait for it.
        self._thread = ThreadPoolExecutor(1)
        self._asking: asyncio.Task[None] | None = None
        self._flow: asyncio.Task[None] | None = None
        self.buffer = Buffer(
            document=Document(manuscript.text),
            on_text_changed=self._changed,
            on_cursor_position_changed=self._changed,
            # Some of the usual keys hand the text over and begin a new one, unless it is asked to stay.
            accept_handler=lambda _: True,
        )
        self.name = Buffer(multiline=False, accept_handler=self._named)
        self.app: Application[int] = Application(
            full_screen=True,
            style=STYLE,
            include_default_pygments_style=False,
            key_bindings=self._bindings(),
            input=terminal_input,
            output=terminal_output,
        )
        self.app.layout = self._layout()
        self.app.ttimeoutlen = 0.1  # So long the rest of a key that begins like Esc may take.
        self.app.key_processor.before_key_press += lambda _: self._say("")

    def run(self) -> int:
        """Show the program; what it returns is the exit code."""
        try:
            with handling(("SIGTERM", "SIGHUP"), self._stopped_by):
                return self._run()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> int:
        try:
            return self.app.run(pre_run=self._begin, set_exception_handler=False)
        except (EOFError, OSError) as error:
            # The end of the keyboard, or a screen that cannot be written to, may be all that we hear of a terminal
            # that went away.
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            self.file.rescue(self.manuscript.text)
            return 128 + (self._signalled or 1)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        # A mistake in here ends the program in order, so that the text is printed before the traceback.
        loop.set_exception_handler(lambda _, context: self._fail(context))
        self._ask(0)
        if self._signalled:
            self._leave(128 + self._signalled)

    def _fail(self, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        if not self.app.is_done:
            self.app.exit(exception=error)

    def _stopped_by(self, number: int, _: FrameType | None) -> None:
        """Save first: the terminal may be gone, and there may be little time."""
        self._signalled = number
        self.file.rescue(self.manuscript.text)
        if self.app.loop is not None:
            self.app.loop.call_soon_threadsafe(self._leave, 128 + number)

    def _leave(self, code: int) -> None:
        if not self.app.is_done:
            self.app.exit(result=code)

    # The text.

    def _changed(self, buffer: Buffer) -> None:
        self.manuscript.edit(buffer.text, buffer.cursor_position)
        if self.mode != "flowing":
            self._ask(PAUSE_S)

    def _show_manuscript(self) -> None:
        """After the manuscript has changed: the buffer follows, and the model is asked at once."""
        self.buffer.document = Document(self.manuscript.text, self.manuscript.cursor)
        self._ask(0)

    def _move(self, step: int) -> None:
        """A row up or down. After a shorter row the cursor returns to the column that it came from."""
        cursor, strives_for = self._striving
        column = strives_for if cursor == self.manuscript.cursor else None
        self._striving = moved(
            self.manuscript.text, self.manuscript.cursor, step, self._size().columns, width_of, column
        )
        self.buffer.cursor_position = self._striving[0]

    # Suggestions.

    def _ask(self, delay_s: float) -> None:
        if not self.app.is_running:
            return
        if self._asking is not None:
            self._asking.cancel()
        self._asking = self.app.create_background_task(self._suggest(delay_s))

    async def _suggest(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if delay_s:
            self.manuscript.pause()
        self.unknown = self.writer.vocabulary.unknown_in(self.manuscript.text[-CONTEXT:])
        if self.manuscript.wants_suggestion:
            wish, began = self.manuscript.wish(), time.monotonic()
            answer = await self._in_thread(suggestion, self.writer, wish)
            if self.manuscript.receive(wish, answer):
                self.manuscript.learn_pace(wish, time.monotonic() - began)
        self.app.invalidate()

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _take(self) -> None:
        if self.manuscript.suggestion:
            self.manuscript.take()
            self._show_manuscript()
        else:
            self._only_at_end()

    def _take_word(self) -> None:
        self.manuscript.take_word()
        self._show_manuscript()

    def _another(self, step: int = 1) -> None:
        self._only_at_end()
        self.manuscript.next_seed(step)
        self._ask(0)

    def _only_at_end(self) -> None:
        if not self.manuscript.at_end:
            self._say("suggestions come at the end of the text; Ctrl-End goes there")

    def _heat(self, step: int) -> None:
        self.manuscript.heat(step)
        self._ask(0)

    def _undo(self) -> None:
        self._show_manuscript() if self.manuscript.undo() else self._say("nothing to undo")

    def _redo(self) -> None:
        self._show_manuscript() if self.manuscript.redo() else self._say("nothing to redo")

    # Going on.

    def _go_on(self) -> None:
        self.mode = "flowing"
        self.manuscript.begin_flow()
        self._show_manuscript()
        self._flow = self.app.create_background_task(self._flowing())

    async def _flowing(self) -> None:
        while True:
            wish = self.manuscript.wish()
            stream = wish.stream(self.writer, FLOW)
            # A new temperature holds from the next character on.
            while wish.temperature == self.manuscript.temperature:
                pieces = await self._in_thread(_next, stream, CHARACTERS_A_FRAME)
                if not pieces:
                    break
                self.buffer.insert_text(pieces)
                await asyncio.sleep(FRAME_S)

    def _stop_flow(self) -> None:
        if self._flow is not None:
            self._flow.cancel()
        # What came with the key, the rest of a longer one perhaps, is no text.
        self.app.key_processor.input_queue.clear()
        self.manuscript.end_flow()
        self.mode = "writing"
        self._ask(0)

    # Files.

    def _save(self, *, leaving: bool = False) -> None:
        if self.mode == "flowing":
            self._stop_flow()
        self._leaving = leaving
        if self.file.path is None:
            self._ask_name("")
        else:
            self._save_as(self.file.path)

    def _ask_name(self, suggested: str) -> None:
        self.mode = "naming"
        self.name.document = Document(suggested)
        self.app.layout.focus(self.name)

    def _named(self, buffer: Buffer) -> bool:
        text = buffer.text.strip()
        self._back()
        if not text:
            self._say("not saved")
        elif (path := Path(text).expanduser()).is_dir():
            self._say(f"{path} is a folder")
        else:
            self._save_as(path)
        return True

    def _save_as(self, path: Path, *, told: bool = False) -> None:
        if not told and self.file.is_anothers(path):
            self.mode, self._path = "replacing", path
            return
        self._back()
        try:
            self.file.save(self.manuscript.text, path)
        except CharwrightError as error:
            self._say(str(error))
        else:
            self._say(f"saved to {path}")
            if self._leaving:
                self._leave(0)

    def _another_name(self) -> None:
        self._ask_name(str(self._path))

    def _back(self) -> None:
        """To writing, from wherever."""
        self.mode = "writing"
        self.app.layout.focus(self.buffer)

    # Leaving.

    def _done(self) -> None:
        """With a file to its name, a text that is done is saved."""
        if self.file.path is None or self.file.holds(self.manuscript.text):
            self._leave(0)
        else:
            self._save(leaving=True)

    def _interrupted(self) -> None:
        self._leave(128 + signal.SIGINT)

    # Keys.

    def _bindings(self) -> KeyBindings:
        writing, flowing, replacing = self._in("writing"), self._in("flowing"), self._in("replacing")
        suggested = writing & Condition(lambda: bool(self.manuscript.suggestion))
        keys = KeyBindings()
        # Where two fit, the later one is called.
        _bind(keys, [["tab"]], self._take, writing)
        _bind(keys, [["right"]], self._take, suggested)
        _bind(keys, [["escape", "f"], ["escape", "right"], ["c-right"]], self._take_word, suggested)
        _bind(keys, [["c-n"], ["escape", "n"]], self._another, writing)
        _bind(keys, [["c-p"], ["escape", "p"]], lambda: self._another(-1), writing)
        _bind(keys, [["c-g"], ["f5"]], self._go_on, writing)
        _bind(keys, [["c-z"], ["c-_"], ["c-x", "c-u"]], self._undo, writing)
        _bind(keys, [["c-y"]], self._redo, writing)
        _bind(keys, [["enter"]], lambda: self.buffer.insert_text("\n"), writing)
        _bind(keys, [["up"]], lambda: self._move(-1), writing)
        _bind(keys, [["down"]], lambda: self._move(1), writing)
        _bind(keys, [["f1"]], self._begin_help, writing)
        # These mean something else in a shell: hand the text over, or comment it out.
        _bind(keys, [["c-o"], ["escape", "#"]], lambda: None, writing)

        _bind(keys, [[Keys.Any]], self._stop_flow, flowing, eager=True)
        _bind(keys, [["f2"], ["c-down"]], lambda: self._heat(-1), writing | flowing, eager=True)
        _bind(keys, [["f3"], ["c-up"]], lambda: self._heat(1), writing | flowing, eager=True)
        _bind(keys, [["c-s"]], self._save, writing | flowing, eager=True)
        _bind(keys, [["c-q"], ["c-d"]], self._done, writing | flowing, eager=True)
        _bind(keys, [["c-c"], [Keys.SIGINT]], self._interrupted, writing, eager=True)

        _bind(keys, [["escape"], ["c-c"], ["c-g"], [Keys.SIGINT]], self._back, self._in("naming"), eager=True)
        _bind(keys, [[Keys.Any]], self._another_name, replacing, eager=True)
        _bind(keys, [["escape"], ["c-c"], ["c-g"], [Keys.SIGINT]], self._back, replacing, eager=True)
        _bind(keys, [["y"], ["Y"]], lambda: self._save_as(self._path, told=True), replacing, eager=True)
        _bind(keys, [[Keys.Any]], self._next_help, self._in("help"), eager=True)
        _bind(keys, [["escape"], ["c-c"], [Keys.SIGINT]], self._back, self._in("help"), eager=True)
        return keys

    def _in(self, mode: str) -> Filter:
        return Condition(lambda: self.mode == mode)

    def _begin_help(self) -> None:
        self.mode, self._help_from = "help", 0

    def _next_help(self) -> None:
        """The next page, where the window is too low for all keys, or back to the text."""
        self._help_from += self._help_rows()
        if self._help_from >= len(KEYS):
            self._back()

    def _help_rows(self) -> int:
        # The last rows say what they say below the text too.
        return max(1, self._size().rows - (2 if self._roomy() else 1))

    def _help(self) -> StyleAndTextTuples:
        fragments: StyleAndTextTuples = []
        for _, _, keys, meaning in KEYS[self._help_from : self._help_from + self._help_rows()]:
            shown = f"{keys:19}" if self._size().columns >= WIDE else f"{keys.split(',')[0]} "
            fragments += [("class:key", shown), ("", f"{meaning}\n")]
        return fragments

    # The screen.

    def _layout(self) -> Layout:
        newline = "↵" if self.app.output.encoding().lower().replace("-", "") == "utf8" else "\\"
        text = TextWindow(
            self.manuscript, BufferControl(self.buffer, input_processors=[Rows(self.manuscript, newline)])
        )
        helping, naming, saying = self._in("help"), self._in("naming"), Condition(lambda: bool(self._message()))
        roomy = Condition(self._roomy)
        question = Window(FormattedTextControl(" Save as: "), dont_extend_width=True, style="class:note")
        root = HSplit(
            [
                ConditionalContainer(text, ~helping),
                ConditionalContainer(Window(FormattedTextControl(self._help)), helping),
                ConditionalContainer(_row(self._status, "class:status"), roomy | ~(naming | saying)),
                ConditionalContainer(VSplit([question, Window(BufferControl(self.name))], height=1), naming),
                ConditionalContainer(_row(self._message, "class:note"), ~naming & saying),
                ConditionalContainer(_row(self._keys), roomy & ~naming & ~saying),
            ]
        )
        return Layout(root, focused_element=text)

    def _size(self) -> Size:
        return self.app.output.get_size()

    def _roomy(self) -> bool:
        return self._size().rows >= ROOMY

    def _say(self, note: str) -> None:
        self.note = note

    def _message(self) -> str:
        """What has to be said now, if anything."""
        if self.mode == "flowing":
            return " the model goes on; any key stops it"
        if self.mode == "replacing":
            return f" {self._path} exists. Replace it? (y/n)"
        if self.mode == "help":
            return " any key goes on"
        return f" {self.note}" if self.note else ""

    def _status(self) -> str:
        """How the model writes, how long the text is, and where it is kept; as much of it as there is room for."""
        manuscript = self.manuscript
        heat, seed, length = str(manuscript.temperature), str(manuscript.seed), f"{len(manuscript.text):,}"
        parts = []
        if self.unknown:
            named = [item if item.isprintable() else repr(item)[1:-1] for item in self.unknown[:5]]
            parts.append("never seen: " + " ".join(named + ["..."] * (len(self.unknown) > 5)))
        if self.file.path is not None:
            parts.append(self.file.path.name + ("" if self.file.holds(manuscript.text) else " *"))
        columns = self._size().columns - 1
        long = [f"temperature {heat}", f"seed {seed}", f"{length} characters", *parts]
        shown = fitting(long, columns)
        return " " + "  ".join(shown if shown == long else fitting([f"t {heat}", f"#{seed}", length, *parts], columns))

    def _keys(self) -> StyleAndTextTuples:
        named = [(key, f"{key} {meaning}") for key, meaning, _, _ in (("F1", "keys", "", ""), *KEYS) if key]
        shown = fitting([words for _, words in named], self._size().columns - 1)
        fragments: StyleAndTextTuples = []
        for (key, words), _ in zip(named, shown, strict=False):
            fragments += [("", "  " if fragments else " "), ("class:key", key), ("", words.removeprefix(key))]
        return fragments


ROOMY = 8
"""With fewer rows than this, there is one row for status, questions and notes, and the keys are in the help alone."""

WIDE = 60
"""With fewer columns than this, the help names one key for each thing."""


def _row(content: Callable[[], Any], style: str = "") -> Window:
    return Window(FormattedTextControl(content), height=1, style=style)


def _next(stream: Iterator[str], count: int) -> str:
    return "".join(islice(stream, count))


def _bind(
    keys: KeyBindings, sequences: Sequence[Sequence[str]], act: Callable[[], None], when: Filter, *, eager: bool = False
) -> None:
    """Call a function without arguments at each of some keys."""

    def handler(_: KeyPressEvent) -> None:
        act()

    for sequence in sequences:
        keys.add(*sequence, filter=when, eager=eager)(handler)
