"""The editor application: it connects the manuscript, the model, the file and the terminal."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output

from charwright.compose.keys import KEYS, Actions, make_bindings
from charwright.compose.manuscript import MAX_CONTEXT, Manuscript
from charwright.compose.rows import move_by_row
from charwright.compose.screen import STYLE, Screen
from charwright.compose.state import State
from charwright.compose.suggestions import suggest
from charwright.compose.text_buffer import TextBuffer
from charwright.compose.text_file import TextFile
from charwright.compose.text_window import width_of
from charwright.errors import CharwrightError
from charwright.signals import handling

if TYPE_CHECKING:
    from charwright.generation.generator import Generator

TYPING_PAUSE_S = 0.25
"""The model is asked for a suggestion after a pause of this length."""

FRAME_S, CHARACTERS_PER_FRAME = 0.04, 2
"""Continuous generation shows 50 characters per second, slow enough to read along and stop in time."""

GENERATION_LENGTH = 10_000
"""Continuous generation reads its context again after this many characters, and behind the end of a record."""


class Editor:
    """The application; `run` shows it until the user quits."""

    def __init__(
        self,
        generator: Generator,
        manuscript: Manuscript,
        file: TextFile,
        terminal_input: Input | None = None,
        terminal_output: Output | None = None,
    ) -> None:
        """Build the application on this process's terminal, or on the given input and output."""
        self.generator, self.manuscript, self.file = generator, manuscript, file
        self.state = State(manuscript, file)
        self._caught_signal = 0  # The number of the signal that ends the application.
        self._quit_after_save = self._save_failed = self._rescuing = False
        self._row_goal = (-1, 0)  # The cursor after the last movement by rows, and its goal column.
        # A single thread: the model answers one request at a time, while keys stay responsive.
        self._thread = ThreadPoolExecutor(1)
        self._suggesting: asyncio.Task[None] | None = None
        self._generating: asyncio.Task[None] | None = None
        self.buffer = TextBuffer(
            document=Document(manuscript.text),
            on_text_changed=self._changed,
            on_cursor_position_changed=self._changed,
            # Some default keys submit the text, which clears the buffer unless the handler returns True.
            accept_handler=lambda _: True,
        )
        self.name = Buffer(multiline=False, accept_handler=self._name_entered)
        self.app: Application[int] = Application(
            full_screen=True,
            style=STYLE,
            include_default_pygments_style=False,
            key_bindings=make_bindings(self.state, self._actions()),
            input=terminal_input,
            output=terminal_output,
        )
        self.screen = Screen(self.state, self.app.output)
        self.app.layout = self.screen.layout(self.buffer, self.name)
        self.app.ttimeoutlen = 0.1  # Seconds to wait for the rest of an escape sequence.
        self.app.key_processor.before_key_press += lambda _: self._notify("")

    def _actions(self) -> Actions:
        return Actions(
            accept=self._accept,
            accept_word=self._accept_word,
            next_suggestion=lambda: self._change_seed(1),
            previous_suggestion=lambda: self._change_seed(-1),
            lower_temperature=lambda: self._change_temperature(-1),
            raise_temperature=lambda: self._change_temperature(1),
            generate=self._start_generating,
            stop_generating=self._stop_generating,
            undo=self._undo,
            redo=self._redo,
            newline=lambda: self.buffer.insert_text("\n"),
            left=self.buffer.cursor_left,
            right=self.buffer.cursor_right,
            row_up=lambda: self._move_by_row(-1),
            row_down=lambda: self._move_by_row(1),
            save=self._save,
            replace_file=lambda: self._save_as(self.state.file_to_replace, replace=True),
            ask_other_name=lambda: self._ask_name(str(self.state.file_to_replace)),
            quit=self._quit,
            quit_unsaved=self._quit_unsaved,
            show_help=self._show_help,
            next_help_page=self._next_help_page,
            back_to_writing=self._back_to_writing,
        )

    def run(self) -> int:
        """Run the application until the user quits; return the exit code."""
        try:
            with handling(("SIGTERM", "SIGHUP", "SIGBREAK"), self._handle_signal):
                return self._run()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> int:
        try:
            return self.app.run(pre_run=self._begin, set_exception_handler=False)
        except (EOFError, OSError) as error:
            # A closed terminal may show only as the end of input, or as EIO on output.
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            self._rescue()
            return 128 + (self._caught_signal or 1)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        # An internal error ends the application normally, so that the text is printed before the traceback.
        loop.set_exception_handler(lambda _, context: self._fail(context))
        self._request_suggestion(0)
        if self._caught_signal:
            self._exit(128 + self._caught_signal)

    def _fail(self, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        if not self.app.is_done:
            self.app.exit(exception=error)

    def _handle_signal(self, number: int, _: FrameType | None) -> None:
        """Save at once, since the terminal may be gone and the process killed soon, then exit."""
        self._caught_signal = number
        self._rescue()
        if self.app.loop is not None:
            self.app.loop.call_soon_threadsafe(self._exit, 128 + number)

    def _rescue(self) -> None:
        """Save without asking. A signal that interrupts it lets it finish, since it may hold a lock."""
        if self._rescuing:
            return
        self._rescuing = True
        try:
            self.file.rescue(self.manuscript.text)
        finally:
            self._rescuing = False

    def _exit(self, code: int) -> None:
        if not self.app.is_done:
            self.app.exit(result=code)

    def _notify(self, note: str) -> None:
        self.state.note = note

    # The text.

    def _changed(self, buffer: Buffer) -> None:
        self.manuscript.edit(buffer.text, buffer.cursor_position)
        if self.state.mode != "generating":
            self._request_suggestion(TYPING_PAUSE_S)

    def _show_manuscript(self) -> None:
        """Copy the manuscript to the buffer, and request a suggestion without delay."""
        self.buffer.document = Document(self.manuscript.text, self.manuscript.cursor)
        self._request_suggestion(0)

    def _move_by_row(self, step: int) -> None:
        cursor, column = self._row_goal
        goal = column if cursor == self.manuscript.cursor else None
        self._row_goal = move_by_row(
            self.manuscript.text, self.manuscript.cursor, step, self.screen.columns, width_of, goal
        )
        self.buffer.cursor_position = self._row_goal[0]

    def _undo(self) -> None:
        self._show_manuscript() if self.manuscript.undo() else self._notify("nothing to undo")

    def _redo(self) -> None:
        self._show_manuscript() if self.manuscript.redo() else self._notify("nothing to redo")

    # Suggestions.

    def _request_suggestion(self, delay_s: float) -> None:
        if not self.app.is_running:
            return
        if self._suggesting is not None:
            self._suggesting.cancel()
        self._suggesting = self.app.create_background_task(self._suggest(delay_s))

    async def _suggest(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if delay_s:
            self.manuscript.pause()
        self.state.unknown = self.generator.vocabulary.unknown_in(self.manuscript.text[-MAX_CONTEXT:])
        if self.manuscript.needs_suggestion:
            request, began = self.manuscript.request(), time.perf_counter()
            suggestion = await self._in_thread(suggest, self.generator, request)
            if self.manuscript.receive(request, suggestion):
                self.manuscript.adapt_context(request, time.perf_counter() - began)
        self.app.invalidate()

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _accept(self) -> None:
        if self.manuscript.suggestion:
            self.manuscript.accept()
            self._show_manuscript()
        else:
            self._note_if_not_at_end()

    def _accept_word(self) -> None:
        self.manuscript.accept_word()
        self._show_manuscript()

    def _change_seed(self, step: int) -> None:
        self._note_if_not_at_end()
        self.manuscript.change_seed(step)
        self._request_suggestion(0)

    def _note_if_not_at_end(self) -> None:
        if not self.manuscript.at_end:
            self._notify("suggestions appear only at the end of the text; press Ctrl-End to go there")

    def _change_temperature(self, step: int) -> None:
        self.manuscript.change_temperature(step)
        self._request_suggestion(0)

    # Continuous generation.

    def _start_generating(self) -> None:
        self.state.mode = "generating"
        self.manuscript.start_generating()
        self._show_manuscript()
        self._generating = self.app.create_background_task(self._generate())

    async def _generate(self) -> None:
        while True:
            request = self.manuscript.request()
            stream = request.stream(self.generator, GENERATION_LENGTH)
            # A new temperature takes effect with the next character.
            while request.temperature == self.manuscript.temperature:
                piece = await self._in_thread(_next_characters, stream, CHARACTERS_PER_FRAME)
                if piece:
                    self.buffer.insert_text(piece)
                await asyncio.sleep(FRAME_S)
                if not piece:
                    break

    def _stop_generating(self) -> None:
        if self._generating is not None:
            self._generating.cancel()
        # The key that stops generation is not inserted, nor is the rest of its escape sequence.
        self.app.key_processor.input_queue.clear()
        self.manuscript.stop_generating()
        self.state.mode = "writing"
        self._request_suggestion(0)

    # Files.

    def _save(self, *, and_quit: bool = False) -> None:
        if self.state.mode == "generating":
            self._stop_generating()
        self._quit_after_save = and_quit
        if self.file.path is None or self._save_failed:
            self._ask_name(str(self.file.path or ""))
        else:
            self._save_as(self.file.path)

    def _ask_name(self, default: str) -> None:
        self.state.mode = "naming"
        self.name.document = Document(default)
        self.app.layout.focus(self.name)

    def _name_entered(self, buffer: Buffer) -> bool:
        text = buffer.text.strip()
        self._back_to_writing()
        if not text:
            self._notify("not saved")
        elif not text.isprintable():
            self._notify("not saved: a name has no control characters")
        else:
            # Not those of Path, which can raise: the name is what somebody typed.
            place = os.path.expanduser(text)  # noqa: PTH111
            if os.path.isdir(place):  # noqa: PTH112
                self._notify(f"{place} is a folder")
            else:
                self._save_as(Path(place))
        return True

    def _save_as(self, path: Path, *, replace: bool = False) -> None:
        obstacle = None if replace else self.file.obstacle(path)
        if obstacle is not None:
            self.state.mode, self.state.file_to_replace, self.state.obstacle = "replacing", path, obstacle
            return
        self._back_to_writing()
        try:
            self.file.save(self.manuscript.text, path)
        except CharwrightError as error:
            self._save_failed = True  # The next attempt may name another file.
            self._notify(error.for_shell)
        else:
            self._save_failed = False
            self._notify(f"saved to {path}")
            if self._quit_after_save:
                self._exit(0)

    def _back_to_writing(self) -> None:
        self.state.mode = "writing"
        self.app.layout.focus(self.buffer)

    # Quitting and help.

    def _quit(self) -> None:
        """Quit, and save first if the text has a file."""
        if self.file.path is None or self.file.is_saved(self.manuscript.text):
            self._exit(0)
        else:
            self._save(and_quit=True)

    def _quit_unsaved(self) -> None:
        self._exit(128 + signal.SIGINT)

    def _show_help(self) -> None:
        self.state.mode, self.state.help_offset = "help", 0

    def _next_help_page(self) -> None:
        self.state.help_offset += self.screen.help_rows()
        if self.state.help_offset >= len(KEYS):
            self._back_to_writing()


def _next_characters(stream: Iterator[str], count: int) -> str:
    return "".join(islice(stream, count))
