"""The keys of the editor: their descriptions and their bindings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prompt_toolkit.filters import Condition, Filter
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from charwright.compose.state import Mode, State

Action = Callable[[], None]
KeySequence = Sequence[str | Keys]


class KeyHelp(NamedTuple):
    """An entry of the key bar at the bottom of the screen, unless its label is empty, and a line of the help."""

    label: str
    action: str
    keys: str
    description: str


KEYS = (
    KeyHelp("Tab", "accept", "Tab, Right", "accept the suggestion"),
    KeyHelp("", "", "Alt-F, Ctrl-Right", "accept its first word"),
    KeyHelp("^N", "next", "Ctrl-N, Alt-N", "next suggestion: seed + 1"),
    KeyHelp("", "", "Ctrl-P, Alt-P", "previous suggestion: seed - 1"),
    KeyHelp("^G", "generate", "Ctrl-G, F5", "generate until a key is pressed"),
    KeyHelp("^S", "save", "Ctrl-S", "save"),
    KeyHelp("^Q", "quit", "Ctrl-Q, Ctrl-D", "quit; saves if there is a file"),
    KeyHelp("", "", "Ctrl-C", "quit without saving"),
    KeyHelp("^Z", "undo", "Ctrl-Z, Ctrl-Y", "undo, redo"),
    KeyHelp("F2/F3", "temperature", "F2, Ctrl-Down", "lower the temperature"),
    KeyHelp("", "", "F3, Ctrl-Up", "raise the temperature"),
)


@dataclass(frozen=True)
class Actions:
    """The functions that the keys call."""

    accept: Action
    accept_word: Action
    next_suggestion: Action
    previous_suggestion: Action
    lower_temperature: Action
    raise_temperature: Action
    generate: Action
    stop_generating: Action
    undo: Action
    redo: Action
    newline: Action
    left: Action
    right: Action
    row_up: Action
    row_down: Action
    save: Action
    replace_file: Action
    ask_other_name: Action
    quit: Action
    quit_unsaved: Action
    show_help: Action
    next_help_page: Action
    back_to_writing: Action


def in_mode(state: State, mode: Mode) -> Filter:
    """Return the condition that the editor is in a mode."""
    return Condition(lambda: state.mode == mode)


def make_bindings(state: State, do: Actions) -> KeyBindings:
    """Return the bindings of all keys in all modes. If two of the same eagerness match, the later one applies."""
    writing, generating = in_mode(state, "writing"), in_mode(state, "generating")
    naming, replacing, helping = in_mode(state, "naming"), in_mode(state, "replacing"), in_mode(state, "help")
    suggested = writing & Condition(lambda: bool(state.manuscript.suggestion))
    keys = KeyBindings()
    _bind(keys, [["tab"]], do.accept, writing)
    _bind(keys, [["left"], ["c-b"]], do.left, writing)
    _bind(keys, [["right"], ["c-f"]], do.right, writing)
    _bind(keys, [["right"]], do.accept, suggested)
    _bind(keys, [["escape", "f"], ["escape", "right"], ["c-right"]], do.accept_word, suggested)
    _bind(keys, [["c-n"], ["escape", "n"]], do.next_suggestion, writing)
    _bind(keys, [["c-p"], ["escape", "p"]], do.previous_suggestion, writing)
    _bind(keys, [["c-g"], ["f5"]], do.generate, writing)
    _bind(keys, [["c-z"], ["c-_"], ["c-x", "c-u"]], do.undo, writing)
    _bind(keys, [["c-y"]], do.redo, writing)
    _bind(keys, [["enter"]], do.newline, writing)
    _bind(keys, [["up"]], do.row_up, writing)
    _bind(keys, [["down"]], do.row_down, writing)
    _bind(keys, [["f1"]], do.show_help, writing)
    # prompt_toolkit's defaults for a shell: submit the text, or comment it out.
    _bind(keys, [["c-o"], ["escape", "#"]], lambda: None, writing)

    _bind(keys, [[Keys.Any]], do.stop_generating, generating, eager=True)
    _bind(keys, [["f2"], ["c-down"]], do.lower_temperature, writing | generating, eager=True)
    _bind(keys, [["f3"], ["c-up"]], do.raise_temperature, writing | generating, eager=True)
    _bind(keys, [["c-s"]], do.save, writing | generating, eager=True)
    _bind(keys, [["c-q"], ["c-d"]], do.quit, writing | generating, eager=True)
    _bind(keys, [["c-c"], [Keys.SIGINT]], do.quit_unsaved, writing, eager=True)

    _bind(keys, [["escape"], ["c-c"], ["c-g"], [Keys.SIGINT]], do.back_to_writing, naming, eager=True)
    _bind(keys, [["c-q"]], do.quit, naming, eager=True)
    _bind(keys, [[Keys.Any]], do.ask_other_name, replacing, eager=True)
    _bind(keys, [["escape"], ["c-c"], ["c-g"], [Keys.SIGINT]], do.back_to_writing, replacing, eager=True)
    _bind(keys, [["y"], ["Y"]], do.replace_file, replacing, eager=True)
    _bind(keys, [[Keys.Any]], do.next_help_page, helping, eager=True)
    _bind(keys, [["escape"], ["c-c"], [Keys.SIGINT]], do.back_to_writing, helping, eager=True)
    return keys


def _bind(
    keys: KeyBindings, sequences: Sequence[KeySequence], action: Action, when: Filter, *, eager: bool = False
) -> None:
    """Bind an action to several key sequences."""

    def handler(_: KeyPressEvent) -> None:
        action()

    for sequence in sequences:
        keys.add(*sequence, filter=when, eager=eager)(handler)
