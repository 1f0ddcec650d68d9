"""The layout of the editor: the text, the help, the status line, messages, and the key bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from charwright.compose.keys import KEYS, in_mode
from charwright.compose.state import State
from charwright.compose.text_window import TextWindow, WrapRows

# No colors: dim, bold and reverse are legible on every background, and with NO_COLOR.
STYLE = Style.from_dict({"suggestion": "dim", "status": "reverse", "key": "bold", "note": "bold"})

ROOMY = 8
"""Windows with fewer rows have a single row for status, questions and messages, and no key bar."""

WIDE = 60
"""In windows with fewer columns, the help shows only the first key of each action."""


class Screen:
    """The view of a State on a terminal."""

    def __init__(self, state: State, output: Output) -> None:
        self.state, self.output = state, output

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        return self.output.get_size().columns

    def layout(self, text: Buffer, name: Buffer) -> Layout:
        """Return the layout, with a buffer for the text and one for the file name."""
        newline = "↵" if self.output.encoding().lower().replace("-", "") == "utf8" else "\\"
        manuscript = self.state.manuscript
        window = TextWindow(manuscript, BufferControl(text, input_processors=[WrapRows(manuscript, newline)]))
        helping, naming = in_mode(self.state, "help"), in_mode(self.state, "naming")
        has_message, roomy = Condition(lambda: bool(self.message())), Condition(self._is_roomy)
        question = Window(FormattedTextControl(" Save as: "), dont_extend_width=True, style="class:note")
        root = HSplit(
            [
                ConditionalContainer(window, ~helping),
                ConditionalContainer(Window(FormattedTextControl(self.help_page)), helping),
                ConditionalContainer(_row(self.status, "class:status"), roomy | ~(naming | has_message)),
                ConditionalContainer(VSplit([question, Window(BufferControl(name))], height=1), naming),
                ConditionalContainer(_row(self.message, "class:note"), ~naming & has_message),
                ConditionalContainer(_row(self.key_bar), roomy & ~naming & ~has_message),
            ]
        )
        return Layout(root, focused_element=window)

    def message(self) -> str:
        """Return the current message or question, or an empty string."""
        if self.state.mode == "generating":
            return " generating; press any key to stop"
        if self.state.mode == "replacing":
            return f" {self.state.file_to_replace} {self.state.obstacle}. Replace it? (y/n)"
        if self.state.mode == "help":
            return " press any key to continue"
        return f" {self.state.note}" if self.state.note else ""

    def status(self) -> str:
        """Return the sampling options, the text's length, unknown characters and the file, as far as they fit."""
        manuscript, file, unknown = self.state.manuscript, self.state.file, self.state.unknown
        temperature, seed, length = str(manuscript.temperature), str(manuscript.seed), f"{len(manuscript.text):,}"
        parts = []
        if unknown:
            shown = [character if character.isprintable() else repr(character)[1:-1] for character in unknown[:5]]
            parts.append("not in the vocabulary: " + " ".join(shown + ["..."] * (len(unknown) > 5)))
        if file.path is not None:
            parts.append(file.path.name + ("" if file.is_saved(manuscript.text) else " *"))
        columns = self.columns - 1
        long = [f"temperature {temperature}", f"seed {seed}", f"{length} characters", *parts]
        short = [f"t {temperature}", f"#{seed}", length, *parts]
        return " " + "  ".join(long if fit_parts(long, columns) == long else fit_parts(short, columns))

    def key_bar(self) -> StyleAndTextTuples:
        """Return the most important keys, as far as they fit."""
        entries = [("F1", "keys"), *((key.label, key.action) for key in KEYS if key.label)]
        shown = fit_parts([f"{label} {action}" for label, action in entries], self.columns - 1)
        fragments: StyleAndTextTuples = []
        for label, action in entries[: len(shown)]:
            fragments += [("", "  " if fragments else " "), ("class:key", label), ("", f" {action}")]
        return fragments

    def help_page(self) -> StyleAndTextTuples:
        """Return the current page of the help."""
        begin = self.state.help_offset
        fragments: StyleAndTextTuples = []
        for key in KEYS[begin : begin + self.help_rows()]:
            shown = f"{key.keys:19}" if self.columns >= WIDE else f"{key.keys.split(',')[0]} "
            fragments += [("class:key", shown), ("", f"{key.description}\n")]
        return fragments

    def help_rows(self) -> int:
        """Return how many keys fit on a page of the help, above the status line and the message."""
        return max(1, self.output.get_size().rows - (2 if self._is_roomy() else 1))

    def _is_roomy(self) -> bool:
        return self.output.get_size().rows >= ROOMY


def fit_parts(parts: Sequence[str], columns: int) -> list[str]:
    """Return the first parts that fit into a row, separated by two spaces."""
    shown: list[str] = []
    for part in parts:
        columns -= get_cwidth(part) + (2 if shown else 0)
        if columns < 0:
            break
        shown.append(part)
    return shown


def _row(content: Callable[[], Any], style: str = "") -> Window:
    return Window(FormattedTextControl(content), height=1, style=style)
