"""A text that a person and a model write together: edits, undo and suggestions, independent of screen and keys."""

from __future__ import annotations

import math
from collections.abc import Callable

from charwright.compose.changes import Change
from charwright.compose.rows import first_word
from charwright.compose.suggestions import GenerationRequest
from charwright.schema import SEEDS

MIN_CONTEXT, MAX_CONTEXT, MAX_WAIT_S = 200, 2000, 0.3
"""The model reads the last 2,000 characters, or as many as it can process in about 0.3 s, but at least 200.

A model of records reads no more of the text than the record that the cursor is in.
"""

MAX_TEMPERATURE = 2.0


class Manuscript:
    """The text and its cursor, the current suggestion, the sampling options, and the undo history."""

    def __init__(
        self,
        text: str = "",
        *,
        temperature: float,
        seed: int,
        record_end: str = "",
        label_of: Callable[[int], str | None] = lambda _: None,
    ) -> None:
        """Begin with a text; `record_end` ends each record of a model of records.

        `label_of` gives the label of a record by a seed, for a model that has labels.
        """
        self.text, self.cursor = text, len(text)
        self.temperature, self.seed = temperature, seed
        self._record_end, self._label_of = record_end, label_of
        self.generating = False  # Whether the model generates continuously.
        self._suggestion = ""
        self._context_length = MAX_CONTEXT
        self._done: list[Change] = []
        self._undone: list[Change] = []
        self._merges = False  # Whether the next edit may merge with the last undo step.

    def edit(self, text: str, cursor: int) -> None:
        """Record a new state of the text and its cursor."""
        if text != self.text:
            change = Change.between(self.text, text)
            self._suggestion = self._rest_of_suggestion(change)
            self._record(change)
            self.text = text
        self.cursor = cursor

    def insert(self, piece: str) -> None:
        """Insert at the cursor."""
        self.edit(self.text[: self.cursor] + piece + self.text[self.cursor :], self.cursor + len(piece))

    def pause(self) -> None:
        """End the current undo step, except during continuous generation, which is a single step."""
        self._merges = self._merges and self.generating

    def _record(self, change: Change) -> None:
        self._undone.clear()
        merged = self._done[-1].merge(change, across_words=self.generating) if self._merges else None
        if merged is not None:
            self._done[-1] = merged
        else:
            self._done.append(change)
        self._merges = True

    # Undo.

    def undo(self) -> bool:
        """Undo the last step; return False if there is none."""
        return self._step(self._done, self._undone)

    def redo(self) -> bool:
        """Redo the last undone step; return False if there is none."""
        return self._step(self._undone, self._done)

    def _step(self, source: list[Change], target: list[Change]) -> bool:
        if not source:
            return False
        change = source.pop()
        target.append(change)
        if source is self._done:
            change = change.inverse()
        self.text = change.apply(self.text)
        self.cursor = change.at + len(change.inserted)
        self._suggestion, self._merges = "", False
        return True

    # Suggestions.

    @property
    def at_end(self) -> bool:
        """Whether the cursor is at the end of the text, the only place for suggestions."""
        return self.cursor == len(self.text)

    @property
    def suggestion(self) -> str:
        """The continuation suggested at the cursor; empty if there is none yet."""
        return self._suggestion if self.at_end else ""

    @property
    def needs_suggestion(self) -> bool:
        """Whether to ask the model for a suggestion."""
        return self.at_end and not self._suggestion and not self.generating

    def request(self) -> GenerationRequest:
        """Return the request for a continuation at the cursor.

        The cursor's index is added to the seed. With the same random draws at every place, a seed whose first draw is
        extreme would begin every suggestion with an unlikely character. The label is that of the place where the record
        begins, so that it stays the same within a record.
        """
        before = self.text[: self.cursor]
        record = before.rpartition(self._record_end)[2] if self._record_end else before
        return GenerationRequest(
            record[-self._context_length :],
            (self.seed + self.cursor) % SEEDS,
            self.temperature,
            self._record_end,
            self._label_of((self.seed + self.cursor - len(record)) % SEEDS),
        )

    def receive(self, request: GenerationRequest, suggestion: str) -> bool:
        """Store the reply to a request; return False and discard it if the text or the options have changed."""
        if not self.needs_suggestion or request != self.request():
            return False
        self._suggestion = suggestion
        return True

    def adapt_context(self, request: GenerationRequest, seconds: float) -> None:
        """Shorten or lengthen the context, given the time that a request took."""
        if seconds > MAX_WAIT_S and len(request.context) > MIN_CONTEXT:
            self._context_length = max(int(len(request.context) * MAX_WAIT_S / seconds), MIN_CONTEXT)
        elif seconds < MAX_WAIT_S / 2:
            self._context_length = min(self._context_length * 2, MAX_CONTEXT)

    def accept(self) -> None:
        """Insert the suggestion."""
        self._accept(self.suggestion)

    def accept_word(self) -> None:
        """Insert the first word of the suggestion; the rest remains suggested."""
        self._accept(first_word(self.suggestion))

    def _accept(self, piece: str) -> None:
        self.pause()
        self.insert(piece)
        self.pause()

    def _rest_of_suggestion(self, change: Change) -> str:
        """Return what remains of the suggestion if the change types its beginning."""
        typed_at_end = not change.removed and change.at == len(self.text)
        if typed_at_end and self._suggestion.startswith(change.inserted):
            return self._suggestion[len(change.inserted) :]
        return ""

    def change_seed(self, step: int = 1) -> None:
        """Move to the next seed, or with -1 to the previous one, and discard the suggestion."""
        self.seed = (self.seed + step) % SEEDS
        self._suggestion = ""

    def change_temperature(self, step: int) -> None:
        """Raise (1) or lower (-1) the temperature to the next multiple of 0.1, and discard the suggestion."""
        tenths = self.temperature * 10
        tenths = math.floor(tenths + 1e-6) + 1 if step > 0 else math.ceil(tenths - 1e-6) - 1
        self.temperature = min(max(tenths / 10, 0.0), max(MAX_TEMPERATURE, self.temperature))
        self._suggestion = ""

    # Continuous generation.

    def start_generating(self) -> None:
        """Accept the suggestion and begin continuous generation, a single undo step."""
        self.pause()
        self.generating = True
        self.insert(self.suggestion)

    def stop_generating(self) -> None:
        """End continuous generation."""
        self.generating = self._merges = False
