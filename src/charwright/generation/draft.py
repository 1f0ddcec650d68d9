"""One text while it is generated: what was sampled becomes characters, with their scores, up to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig
from charwright.data.vocabulary import Vocabulary
from charwright.generation.endings import Endings
from charwright.generation.engine import MOST_STEPS
from charwright.generation.masks import Mask
from charwright.generation.scoring import Choices, PromptScores, named_choices
from charwright.generation.streams import Stream

Float64s = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]

Guard = Callable[[Ids], Mask]
"""From the ids so far to a mask (V,) of the ids that must not come next."""

LONGEST_INCOMPLETE = 3  # bytes of a character without its last one


@dataclass(eq=False)
class Paused:
    """A paused text: its stream, and the ids that were sampled but not shown yet."""

    stream: Stream
    unshown: Ids
    """The start of a possible stop string, text after the end of a sentence, or bytes of an incomplete character."""


@dataclass(frozen=True)
class Fragment:
    """A part of a text, with the scores of its characters as far as they were requested."""

    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    """As in `Draft.logprobs`: one for each character, or none."""
    alternatives: list[Choices] = field(default_factory=list)
    """As in `Draft.alternatives`: one for each character, or none."""


@dataclass(eq=False)
class Draft:
    """One text while it is generated, and afterwards."""

    prompt: str
    config: GenerationConfig
    stream: Stream
    vocabulary: Vocabulary
    endings: Endings
    guard: Guard | None = None
    left: int = 0
    """Characters left to generate."""
    ended: str | None = None
    """Why it ended: `length`, `record`, `stop`, `line`, `paragraph` or `sentence`; None while it continues."""
    logprobs: list[float] = field(default_factory=list)
    """ln p of each character under the model, at temperature 1 and without masks, if requested; without those that
    `take` has returned.

    NaN for characters that were sampled before a pause and shown after it.
    """
    alternatives: list[Choices] = field(default_factory=list)
    """For each of `logprobs`: the K most likely tokens at that position with ln p of each, if requested.

    `[UNK]` is one of the tokens. Empty where `logprobs` is NaN.
    """
    end_logprob: float | None = None
    """ln p of the end of the record, if the text ended with it and the scores were requested."""
    prompt_logprobs: list[float] = field(default_factory=list)
    """ln p of each character of the prompt given those before it, if requested, as soon as all are known.

    NaN for the first, unless a context comes before it. A character outside the vocabulary has ln p([UNK]) -
    ln(1,114,112 - V).
    """
    prompt_alternatives: list[Choices] = field(default_factory=list)
    """For each of `prompt_logprobs`: the K most likely tokens, as in `alternatives`; empty where it is NaN."""
    score_only: bool = False
    """Whether nothing is generated: it ends, for its `length`, when the prompt is read."""
    _prompt_scores: PromptScores | None = None  # while the prompt is read
    _written: list[str] = field(default_factory=list)  # what `pop` returns next
    _popped: int = 0  # characters that `pop` has returned
    _taken: int = 0  # characters before those of `logprobs`
    _seen: int = 0  # ids decoded since the start of the stream
    _shown: int = 0  # characters
    _logprob: float = 0.0  # of the bytes of an incomplete character
    _mask: Mask | None = None  # without the guard's mask
    _partial: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # the bytes of an incomplete character
    _rest: str = ""  # sampled after the end

    def __post_init__(self) -> None:
        """Start to decode after the prompt."""
        self._decoder = self.vocabulary.decoder()

    def pop(self) -> str:
        """Return the text generated since the last call."""
        piece = "".join(self._written)
        self._written.clear()
        self._popped += len(piece)
        return piece

    def take(self) -> Fragment:
        """Return the text generated since the last call of this or of `pop`, with its scores, and forget the scores.

        A text that is taken like this needs no more memory the longer it is.
        """
        begin = self._popped - self._taken
        text = self.pop()
        end = self._popped - self._taken
        fragment = Fragment(text, self.logprobs[begin:end], self.alternatives[begin:end])
        del self.logprobs[:end], self.alternatives[:end]
        self._taken = self._popped
        return fragment

    @property
    def shown(self) -> int:
        """The number of characters generated."""
        return self._shown

    @property
    def watched(self) -> bool:
        """Whether its next id is sampled under the guard, which must see all ids before."""
        return self.guard is not None and self.stream.unread == 1

    @property
    def needed(self) -> int:
        """The steps until it has its length, at least. An ending may come before."""
        return self.stream.unread - 1 + self.left

    def most_steps(self, *, one_by_one: bool) -> int:
        """The most steps of a call: until its ids must be examined, for its exact end or by the guard.

        Without `one_by_one`, a text that ends within a call may sample on: what is behind its end is not shown.
        """
        reading = self.stream.unread - 1  # steps that only read
        if self.guard is not None or (one_by_one and self.endings.waiting):
            return max(reading, 1)
        return self.needed if one_by_one or self.score_only else MOST_STEPS

    def guarded(self) -> None:
        """Mask what the guard forbids for the next draw, unless nothing else is left."""
        if self.guard is None or self.stream.unread > 1 or self._mask is None:
            return
        mask = self._mask | self.guard(self.stream.ids[: self.stream.length])
        assert self.stream.sampler.masked is not None
        self.stream.sampler.masked[:] = self._mask if mask.all() else mask

    def take_in(self) -> None:
        """Decode the ids that the engine has sampled, and collect the scores of the prompt."""
        stream = self.stream
        if self._prompt_scores is not None:
            self._take_in_prompt(self._prompt_scores)
        if self.score_only:
            self.ended = "length" if self._prompt_scores is None else None
            return
        fresh = slice(self._seen - stream.forgotten, stream.length)
        self._seen = stream.forgotten + stream.length
        others = stream.alternatives
        self.read(
            stream.ids[fresh],
            None if stream.scores is None else stream.scores[fresh],
            None if others is None else named_choices(self.vocabulary, others, fresh),
        )

    def score_prompt(self, ids: Ids, before: int = 0) -> None:
        """Collect the scores of the prompt, whose ids these are; so many ids come before them."""
        self._prompt_scores = PromptScores(self.vocabulary, self.prompt, ids, before)
        self._take_in_prompt(self._prompt_scores)

    def generate_nothing(self) -> None:
        """End as soon as the scores of the prompt are known."""
        self.score_only, self.left = True, 0
        self.ended = "length" if self._prompt_scores is None else None

    def read_again(self, unshown: Ids) -> None:
        """Begin with ids that were sampled before a pause, whose scores are not known any more."""
        scores = None if self.stream.scores is None else np.full(len(unshown), np.nan)
        self.read(unshown, scores, None if self.stream.alternatives is None else [()] * len(unshown))

    def read(self, ids: Ids, scores: Float64s | None, choices: list[Choices] | None = None) -> None:
        """Append these ids to the text, with ln p of each and the alternatives to each if requested."""
        if self.vocabulary.level == "byte":
            self._partial = incomplete(self.vocabulary, np.concatenate([self._partial, ids]))
        if scores is None:
            self._add(self._decoder.feed_all(ids))
            return
        if self.vocabulary.level == "character" and ids.all():  # an id is a character
            self.logprobs += scores.tolist()
            self.alternatives += choices or ()
            self._add(self._decoder.feed_all(ids))
        else:
            self._read_one_by_one(ids, scores, choices)
        if self.ended:
            kept = self._shown - self._taken
            if self.ended == "record" and self.endings.record_end:
                self.end_logprob = sum(self.logprobs[kept : kept + len(self.endings.record_end)])
            del self.logprobs[kept:], self.alternatives[kept:]

    def paused(self) -> Paused:
        """Return what another draft needs to continue this text. This draft must not be continued."""
        held = self.vocabulary.encode(self._rest if self.ended else self.endings.held)
        return Paused(self.stream, np.concatenate([held, self._partial]))

    def _take_in_prompt(self, scores: PromptScores) -> None:
        scores.take_in(self.stream)
        if scores.complete:
            self.prompt_logprobs = scores.logprobs()
            if self.stream.alternatives is not None:
                self.prompt_alternatives = scores.choices
            self._prompt_scores = None

    def _read_one_by_one(self, ids: Ids, scores: Float64s, choices: list[Choices] | None) -> None:
        rows: Iterable[Choices] = repeat(()) if choices is None else choices
        for index, logprob, row in zip(ids.tolist(), scores.tolist(), rows, strict=False):
            self._logprob += logprob
            if piece := self._decoder.feed(index):
                # A broken byte before a character yields two characters at once: the first gets the sum.
                others = len(piece) - 1
                self.logprobs += [self._logprob, *([0.0] * others)]
                if choices is not None:
                    self.alternatives += [row, *([()] * others)]
                self._logprob = 0.0
                self._add(piece)

    def _add(self, piece: str) -> None:
        if self.ended:
            self._rest += piece
            return
        piece, self._rest = piece[: self.left], piece[self.left :]
        self.left -= len(piece)
        self._show(self.endings.feed(piece))
        self.ended = self.endings.ended
        self._rest = self.endings.behind + self._rest
        if not self.ended and self.left == 0:
            self._show(self.endings.flush())
            self.ended = "length"

    def _show(self, text: str) -> None:
        self._written.append(text)
        self._shown += len(text)


def incomplete(vocabulary: Vocabulary, ids: Ids) -> Ids:
    """The trailing ids that are bytes of an incomplete character."""
    if vocabulary.level != "byte":
        return ids[:0]
    for size in range(min(LONGEST_INCOMPLETE, len(ids)), 0, -1):
        if not vocabulary.decoder().feed_all(ids[-size:]):
            return ids[-size:]
    return ids[:0]
