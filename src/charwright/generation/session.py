"""Continuous batching: each text has its own prompt, seed, options and end, and may join or leave at any step.

No text depends on the others in the batch. `Generator` is built on this, and so can a server be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.endings import Endings
from charwright.generation.engine import MOST_STEPS, MOST_STREAMS, Engine
from charwright.generation.masks import Mask, allowed
from charwright.generation.sampling import Sampler
from charwright.generation.streams import Stream

Float64s = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]

MOST_PROMPT = 1_000_000
"""Characters of a prompt. What a recurrent network read further back no longer affects what it generates."""

Guard = Callable[[Ids], Mask]
"""From the ids so far to a mask (V,) of the ids that must not come next."""

LONGEST_INCOMPLETE = 3  # bytes of a character without its last one

# The target duration of an engine call: short enough to respond to a key at once, long enough to amortize the call.
CALL_S = 0.008
MANY = 8  # More texts than this are not watched letter by letter: longer calls reduce the overhead.
MANY_CALL_S = 0.05


@dataclass(eq=False)
class Paused:
    """A paused text: its stream, and the ids that were sampled but not shown yet."""

    stream: Stream
    unshown: Ids
    """The start of a possible stop string, text after the end of a sentence, or bytes of an incomplete character."""


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
    """Why it ended: `length`, `stop`, `line`, `paragraph` or `sentence`; None while it continues."""
    logprobs: list[float] = field(default_factory=list)
    """ln p of each character under the model, at temperature 1 and without masks, if requested.

    NaN for characters that were sampled before a pause and shown after it.
    """
    _written: list[str] = field(default_factory=list)  # what `pop` returns next
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
        return piece

    @property
    def shown(self) -> int:
        """The number of characters generated."""
        return self._shown

    def most_steps(self, wanted: int, *, one_by_one: bool) -> int:
        """The number of steps until the sampled ids must be examined: for its end, or by the guard."""
        reading = self.stream.unread - 1  # steps that only read
        if self.guard is not None or (one_by_one and self.endings.waiting):
            return min(wanted, max(reading, 1))
        return min(wanted, reading + self.left)

    def guarded(self) -> None:
        """Mask what the guard forbids for the next draw, unless nothing else is left."""
        if self.guard is None or self.stream.unread > 1 or self._mask is None:
            return
        mask = self._mask | self.guard(self.stream.ids[: self.stream.length])
        assert self.stream.sampler.masked is not None
        self.stream.sampler.masked[:] = self._mask if mask.all() else mask

    def take_in(self) -> None:
        """Decode the ids that the engine has sampled."""
        stream = self.stream
        fresh = slice(self._seen - stream.forgotten, stream.length)
        self._seen = stream.forgotten + stream.length
        self.read(stream.ids[fresh], None if stream.scores is None else stream.scores[fresh])

    def read(self, ids: Ids, scores: Float64s | None) -> None:
        """Append these ids to the text, with ln p of each if requested."""
        self._partial = incomplete(self.vocabulary, np.concatenate([self._partial, ids]))
        if scores is None:
            self._add(self._decoder.feed_all(ids))
            return
        for index, logprob in zip(ids.tolist(), scores.tolist(), strict=True):
            self._logprob += logprob
            if piece := self._decoder.feed(index):
                # A broken byte before a character yields two characters at once: the first gets the sum.
                self.logprobs += [self._logprob, *([0.0] * (len(piece) - 1))]
                self._logprob = 0.0
                self._add(piece)
        del self.logprobs[self._shown if self.ended else len(self.logprobs) :]

    def paused(self) -> Paused:
        """Return what another draft needs to continue this text. This draft must not be continued."""
        held = self.vocabulary.encode(self._rest if self.ended else self.endings.held)
        return Paused(self.stream, np.concatenate([held, self._partial]))

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


class Session:
    """Generate all texts that have joined, a few steps at a time."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary, *, one_by_one: bool = False) -> None:
        """With `one_by_one`, the state of a text that met an ending is exactly the state after it."""
        self.engine, self.vocabulary = engine, vocabulary
        self.drafts: list[Draft] = []
        self._one_by_one = one_by_one
        self._steps = 1  # of the next call

    def join(
        self,
        prompt: str,
        config: GenerationConfig,
        stream: int = 0,
        *,
        guard: Guard | None = None,
        logprobs: bool = False,
        start: Paused | None = None,
    ) -> Draft:
        """Start a text, or continue `start`, with its own seed if `config` has none.

        The seed and `stream`, the index of the text, are the key of its random numbers. A continued text begins with
        the ids that were sampled but not shown, unless a prompt is given. They alone may end it.

        One call joins one text, regardless of the config's `num`. `max_copy` requires a guard
        (`CopyGuard(training ids, V, max_copy).forbidden`), since only the caller has the training text.

        Raises:
            UsageError: if no id is allowed, the prompt is too long, or the guard is missing.
        """
        if config.max_copy is not None and guard is None:
            raise UsageError("max_copy requires a guard with the training text: create one with novelty.CopyGuard")
        mask = ~allowed(self.vocabulary, config)
        track = Stream(self.engine.zero_state()[0]) if start is None else start.stream
        if logprobs:
            track.scores = np.zeros(len(track.ids))
        if prompt or start is None:
            track.feed(prompt_ids(self.vocabulary, prompt))
        track.sampler = _sampler(
            config, mask if guard is None else mask.copy(), track.sampler, stream, start is not None
        )
        if start is not None and config.seed is not None:
            track.drawn = 0
        endings = Endings(config.stop, config.until)
        draft = Draft(prompt, config, track, self.vocabulary, endings, guard, left=config.length)
        draft._mask, draft._seen = mask, track.forgotten + track.length
        if start is not None and not prompt:
            draft.read(start.unshown, np.full(len(start.unshown), np.nan) if logprobs else None)
        if draft.ended is None:
            self.drafts.append(draft)
        return draft

    def leave(self, draft: Draft) -> None:
        """Remove a text before its end."""
        self.drafts.remove(draft)

    def advance(self, most: int | None = None) -> list[Draft]:
        """Run a few steps, at most `most`, and return the drafts that took part. Drafts that have ended leave.

        The first 64 drafts form the batch; the others wait for a place. A larger batch makes each text slower, and none
        faster.

        Raises:
            UsageError: if `most` is less than 1.
        """
        if most is not None and most < 1:
            raise UsageError(f"a session advances by at least one step, not {most}")
        drafts = self.drafts[:MOST_STREAMS]
        if not drafts:
            return []
        for draft in drafts:
            draft.guarded()
        wanted = min(self._steps, most or self._steps)
        steps = min(draft.most_steps(wanted, one_by_one=self._one_by_one) for draft in drafts)
        began = time.perf_counter()
        try:
            self.engine.advance([draft.stream for draft in drafts], steps)
            self._learn(steps, time.perf_counter() - began, MANY_CALL_S if len(drafts) > MANY else CALL_S)
        finally:
            for draft in drafts:
                draft.take_in()
        self.drafts = [draft for draft in self.drafts if draft.ended is None]
        return drafts

    def _learn(self, steps: int, seconds: float, wanted_s: float) -> None:
        """Double or halve the number of steps of the next call, by the time of this one."""
        if seconds < wanted_s / 2 and steps >= self._steps:
            self._steps = min(2 * self._steps, MOST_STEPS)
        elif seconds > 2 * wanted_s:
            self._steps = max(1, self._steps // 2)


def prompt_ids(vocabulary: Vocabulary, prompt: str) -> npt.NDArray[np.int32]:
    """The ids of a prompt. An empty prompt is read as a newline: generation starts at the beginning of a line.

    Raises:
        UsageError: if it is so long that reading it would take minutes.
    """
    if len(prompt) > MOST_PROMPT:
        raise prompt_is_too_long()
    return vocabulary.encode(prompt or ("\n" if not vocabulary.unknown_in("\n") else " "))


def prompt_is_too_long() -> UsageError:
    """The error for a prompt that is too long."""
    return UsageError(
        f"the prompt has more than {MOST_PROMPT:,} characters, and text that far back makes no difference: pass only"
        " its end"
    )


def incomplete(vocabulary: Vocabulary, ids: Ids) -> Ids:
    """The trailing ids that are bytes of an incomplete character."""
    if vocabulary.level != "byte":
        return ids[:0]
    for size in range(min(LONGEST_INCOMPLETE, len(ids)), 0, -1):
        if not vocabulary.decoder().feed_all(ids[-size:]):
            return ids[-size:]
    return ids[:0]


def _sampler(config: GenerationConfig, mask: Mask, before: Sampler, stream: int, resumed: bool) -> Sampler:
    seed, index = (before.seed, before.stream) if resumed and config.seed is None else (config.seed or 0, stream)
    return Sampler(
        config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty, mask, seed, index
    )
