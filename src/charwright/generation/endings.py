"""Find the end of a text that arrives in pieces: of a record, word, line, paragraph or sentence, or a stop string."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from charwright.errors import UsageError
from charwright.passages import parse_until

# The marks that end a sentence, and those that may follow them. In scripts with spaces, a space must come next.
_STOPS, _WIDE_STOPS, _CLOSERS = ".!?…؟।۔", "。！？｡", "\"'”’»›)]}」』】）》〉"
_CLOSING = re.escape(_CLOSERS)
# Runs of marks are matched from their beginning and as a whole, or a long one would take quadratic time.
_SENTENCE_END = re.compile(
    f"(?<![{_STOPS}])[{_STOPS}]++[{_CLOSING}]*+(?=\\s)"
    f"|(?<![{_WIDE_STOPS}])[{_WIDE_STOPS}]++[{_CLOSING}]*+(?=[^{_WIDE_STOPS}{_CLOSING}])"
)
# What is between words: whitespace and punctuation, but for apostrophes and hyphens, which may be in them.
_BETWEEN_WORDS = (
    r"\s!-&(-,./:-@\[-^`{-~\u00a1-\u00a9\u00ab\u00ae-\u00b4\u00b6-\u00b8\u00bb-\u00bf\u00d7\u00f7\u0589\u05be-\u05c3"
    r"\u060c\u061b-\u061f\u06d4\u0964\u0965\u2012-\u2018\u201a-\u206f\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030"
    r"\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_IN_WORD = re.compile(f"[^{_BETWEEN_WORDS}]")
_UNIT_ENDS = {
    "word": re.compile(f"[{_BETWEEN_WORDS}]"),
    "line": re.compile("\n"),
    "paragraph": re.compile("\n[ \t]*+\n"),
    "sentence": _SENTENCE_END,
}
_OPEN_PARAGRAPH = re.compile(r"\n[ \t]*+\Z")


def check_beginning(prompt: str, record_end: str) -> None:
    """Check that a prompt is the beginning of one record.

    Raises:
        UsageError: if not.
    """
    if record_end in prompt:
        raise UsageError(f"the prompt has the end of a record, {record_end!r}; give the beginning of one record")


class Found(NamedTuple):
    """An ending: where it begins in the text, where it is complete, and its name."""

    begin: int
    end: int
    name: str


class Endings:
    """Read a text piece by piece; determine what may be shown, and whether it has ended.

    Text that may be the beginning of an ending is held back until that is decided. The text ends at the ending that is
    complete first, however the text is cut into pieces.
    """

    def __init__(self, stop: Sequence[str] = (), until: str | None = None, record_end: str | None = None) -> None:
        """Look for the stop strings, the end of `until` (`word`, `line`, `3 sentences`), and that of a record."""
        self.ended: str | None = None
        """Why it ended: `record`, `stop`, `word`, `line`, `paragraph` or `sentence`."""
        self.record_end = record_end
        self.stop: str | None = None
        """The stop string that was found."""
        self.held = ""
        """The text held back; empty after the end."""
        self.behind = ""
        """The text read after the end: for a sentence, at least the character that follows it."""
        self._stops = sorted(stop, key=len, reverse=True)
        self._strings = [*self._stops, *([record_end] if record_end else [])]
        self._unit, self._left = (parse_until(until) if until else None) or ("", 0)
        self._undecided = 0  # characters at the end of the held text that may be the end of a unit
        self._begun = False  # empty lines and paragraphs do not count

    @property
    def waiting(self) -> bool:
        """Whether there is any ending to look for."""
        return bool(self._strings or self._unit)

    def feed(self, piece: str) -> str:
        """Read the next piece; return the text that may be shown now."""
        if not self.waiting:
            return piece
        text = self.held + piece
        found = min((*self._stop_in(text), *self._unit_in(text)), key=lambda each: (each.end, each.begin), default=None)
        if found is not None:
            self.ended, self.held = found.name, ""
            self.stop = text[found.begin : found.end] if found.name == "stop" else None
            self.behind = text[found.begin if found.name == "sentence" else found.end :]
            return text[: found.begin]
        keep = max(self._undecided, self._undecided_stop(text))
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text held back, when the text ends for another reason."""
        held, self.held = self.held, ""
        return held

    def _stop_in(self, text: str) -> Iterator[Found]:
        if self.record_end and (at := text.find(self.record_end)) >= 0:
            yield Found(at, at + len(self.record_end), "record")
        for stop in self._stops:
            if (at := text.find(stop)) >= 0:
                yield Found(at, at + len(stop), "stop")

    def _undecided_stop(self, text: str) -> int:
        """The number of characters at the end that may be the beginning of a stop string, or of a record's end."""
        longest = min(len(text), max((len(stop) for stop in self._strings), default=1) - 1)
        for size in range(longest, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._strings):
                return size
        return 0

    def _unit_in(self, text: str) -> Iterator[Found]:
        """The end of the last requested unit. Units before it are counted."""
        if not self._unit:
            return
        if self._marks_go_on(text):
            self._undecided += len(text) - len(self.held)
            return
        at = len(self.held) - self._undecided  # the text before was searched with the previous piece
        for match in _UNIT_ENDS[self._unit].finditer(text, at):
            if not (self._begun or self._has_content(text[at : match.start()])):
                continue
            at, self._begun = match.end(), False
            self._left -= 1
            if self._left == 0:
                # A sentence keeps its final mark, and the next character decides; a line or a word drops its end.
                sentence = self._unit == "sentence"
                yield Found(match.end() if sentence else match.start(), match.end() + sentence, self._unit)
                return
        decided = max(at, self._decided(text))
        self._begun = self._begun or self._has_content(text[at:decided])
        self._undecided = len(text) - decided

    def _has_content(self, text: str) -> bool:
        """Whether a unit has begun with this text: of a word, one of its characters; of others, no mere whitespace."""
        return bool(_IN_WORD.search(text) if self._unit == "word" else text.strip())

    def _decided(self, text: str) -> int:
        """The length of the text without what may be an incomplete end of a unit."""
        if self._unit == "sentence":
            return len(text.rstrip(_STOPS + _WIDE_STOPS + _CLOSERS))
        open_end = _OPEN_PARAGRAPH.search(text) if self._unit == "paragraph" else None
        return open_end.start() if open_end else len(text)

    def _marks_go_on(self, text: str) -> bool:
        """Whether the new part of the text only adds marks to a run that may end a sentence, and cannot end it.

        Reading the whole run again for each piece would take quadratic time.
        """
        if self._unit != "sentence" or not self._undecided:
            return False
        run, new = text[len(self.held) - self._undecided : len(self.held)], text[len(self.held) :]
        if not new.strip(_WIDE_STOPS + _CLOSERS):
            return True
        return not new.strip(_STOPS + _CLOSERS) and not any(stop in run for stop in _WIDE_STOPS)
