"""Requests to the model, and suggestions of at most one line in reply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from charwright.compose.rows import begins_word, is_wide

TARGET_COLUMNS, MAX_COLUMNS = 40, 60
"""A suggestion ends with the word that reaches 40 columns, or at 60 columns inside a word."""

MAX_LEADING_NEWLINES = 3


class TextGenerator(Protocol):
    """The part of `Generator` that the editor uses."""

    def stream(
        self, prompt: str, /, *, label: str | None, with_end: bool, length: int, temperature: float, seed: int
    ) -> Iterator[str]:
        """Yield the continuation of a prompt in pieces, as they are sampled, `with_end` the end of a record too."""


@dataclass(frozen=True)
class GenerationRequest:
    """A context to continue, with the sampling options. Equal requests produce equal text.

    For a model of records, the context is the beginning of a record with this label, if the model has labels, and the
    continuation goes up to and including `record_end`.
    """

    context: str
    seed: int
    temperature: float
    record_end: str = ""
    label: str | None = None

    def stream(self, generator: TextGenerator, length: int) -> Iterator[str]:
        """Yield the characters of the continuation."""
        pieces = generator.stream(
            self.context,
            label=self.label,
            with_end=True,
            length=length,
            temperature=self.temperature,
            seed=self.seed,
        )
        # A byte-level model can sample invalid UTF-8; the replacement character does not belong in the text.
        characters = (character for piece in pieces for character in piece if character != "\ufffd")
        return _until(self.record_end, self.context, characters) if self.record_end else characters


def suggest(generator: TextGenerator, request: GenerationRequest) -> str:
    """Return the rest of the current line, or the next line if the current one is complete, cut to MAX_COLUMNS."""
    return _one_line(request.stream(generator, MAX_COLUMNS))


def _until(end: str, context: str, characters: Iterable[str]) -> Iterator[str]:
    """Yield characters up to and including the end of the record, of which the context may have the first part."""
    last = context[-len(end) :]
    for character in characters:
        yield character
        last = (last + character)[-len(end) :]
        if last == end:
            return


def _one_line(characters: Iterable[str]) -> str:
    text, columns = "", 0
    for character in characters:
        if character == "\n" and (text.strip("\n") or len(text) == MAX_LEADING_NEWLINES):
            break
        if columns >= TARGET_COLUMNS and (
            columns >= MAX_COLUMNS or character.isspace() or begins_word(text + character, len(text))
        ):
            break
        text += character
        columns += 2 if is_wide(character) else 1
    return text
