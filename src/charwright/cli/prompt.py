"""The prompt of `charwright generate`: from its option, or from standard input."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from charwright.cli.options import END_OF_INPUT, say
from charwright.errors import CharwrightError, UsageError

if TYPE_CHECKING:
    from charwright.run import Run

WAITING_S = 3.0
"""Seconds without a prompt from a pipe, after which a line says what is waited for."""


def read_prompt(given_prompt: str | None, run: Run) -> str:
    """Read the prompt from the option, or from standard input if requested or piped."""
    if given_prompt not in {None, "-"}:
        text = given_prompt or ""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError("the prompt is not UTF-8")
        return _with_newlines(text, run)
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if sys.stdin is None or (at_terminal and given_prompt is None):
        return ""
    if at_terminal:
        click.echo(f"type the prompt; end it with {END_OF_INPUT} on a new line", err=True)
    from charwright.generation.session import MOST_PROMPT, prompt_is_too_long

    with _announced():
        data = sys.stdin.buffer.read(4 * MOST_PROMPT + 1)
    if len(data) > 4 * MOST_PROMPT:
        raise prompt_is_too_long()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CharwrightError(f"the prompt on standard input is not UTF-8: byte {error.start} is invalid") from error
    text = _with_newlines(text, run)
    # The final newline comes from the shell; it is not part of the prompt.
    return re.sub(r"\r?\n\Z", "", text)


def _with_newlines(text: str, run: Run) -> str:
    """The prompt with the newlines that the run's text was given."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if run.config.corpus.newlines == "lf" else text


@contextmanager
def _announced() -> Iterator[None]:
    """Say what is waited for, if reading standard input takes long: nobody may ever write to it."""
    waiting = threading.Timer(WAITING_S, say, ["reading the prompt from standard input; --prompt= begins without one"])
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()
