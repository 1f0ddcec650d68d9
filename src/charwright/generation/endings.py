"""Where a text ends: at a stop text, or with a line, a paragraph, a sentence. Found in text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from charwright.config import parse_until

# What ends a sentence, what may stand behind that, and where the next begins: behind a space where a script has them.
_STOPS, _WIDE_STOPS, _CLOSERS = ".!?…؟।۔", "。！？｡", "\"'”’»›)]}」』】）》〉"
_SENTENCE_END = re.compile(
    f"[{_STOPS}]+[{re.escape(_CLOSERS)}]*(?=\\s)|[{_WIDE_STOPS}]+[{re.escape(_CLOSERS)}]*(?=[^{_WIDE_STOPS}{re.escape(_CLOSERS)}])"
)
# For each unit: its end, and what may be the beginning of one at the end of what was read so far.
_UNIT_ENDS = {
    "line": (re.compile("\n"), re.compile(r"(?!)")),
    "paragraph": (re.compile("\n[ \t]*\n"), re.compile(r"\n[ \t]*\Z")),
    "sentence": (_SENTENCE_END, re.compile(rf"[{_STOPS}{_WIDE_STOPS}{re.escape(_CLOSERS)}]+\Z")),
}


class Found(NamedTuple):
    """An ending: how many characters of the text stand before it, where it is complete, and what it is called."""

    begin: int
    end: int
    name: str


class Endings:
    """Reads a text piece by piece and says what of it may be shown, and whether it has ended.

    What might be the beginning of an ending is held back until it is one or is none. The same text gives the same end
    however it is cut into pieces: the ending that is complete first.
    """

    def __init__(self, stop: Sequence[str] = (), until: str | None = None) -> None:
        """Look for the stop texts, and for what `until` says (`line`, `paragraph`, `3 sentences`)."""
        self.ended: str | None = None
        """Why it ended: `stop`, `line`, `paragraph` or `sentence`."""
        self.stop: str | None = None
        """The stop text that was met."""
        self.held = ""
        """What is held back; once it has ended, nothing."""
        self.behind = ""
        """What was read behind the end: at least what showed that a sentence has ended."""
        self._stops = sorted(stop, key=len, reverse=True)
        self._unit, self._left = (parse_until(until) if until else None) or ("", 0)
        self._undecided = 0  # characters at the end of what is held that may belong to the end of a unit
        self._begun = False  # an empty line is no line, and an empty paragraph none

    @property
    def waiting(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._stops or self._unit)

    def feed(self, piece: str) -> str:
        """Take the next piece; return what may be shown now."""
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
        """What was held back, at the end of a text that ended for another reason."""
        held, self.held = self.held, ""
        return held

    def _stop_in(self, text: str) -> Iterator[Found]:
        for stop in self._stops:
            if (at := text.find(stop)) >= 0:
                yield Found(at, at + len(stop), "stop")

    def _undecided_stop(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = min(len(text), max((len(stop) for stop in self._stops), default=1) - 1)
        for size in range(longest, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0

    def _unit_in(self, text: str) -> Iterator[Found]:
        """The end of the last unit that is wanted; units before it are counted on the way."""
        if not self._unit:
            return
        end, undecided = _UNIT_ENDS[self._unit]
        at = len(self.held) - self._undecided  # what stands before was looked at with the piece before
        for match in end.finditer(text, at):
            if not (self._begun or text[at : match.start()].strip()):
                continue
            at, self._begun = match.end(), False
            self._left -= 1
            if self._left == 0:
                # A sentence keeps its full stop, and what comes behind it decides; a line does without its end.
                sentence = self._unit == "sentence"
                yield Found(match.end() if sentence else match.start(), match.end() + sentence, self._unit)
                return
        open_end = undecided.search(text, at)
        decided = open_end.start() if open_end else len(text)
        self._begun = self._begun or bool(text[at:decided].strip())
        self._undecided = len(text) - decided
