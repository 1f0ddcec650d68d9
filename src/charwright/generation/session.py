"""Texts written together: each has its own prompt, seed, options and end, and may come and go at any step.

Nothing that a text is depends on the others. A server sits on this; `Generator` is made of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import UsageError
from charwright.generation.endings import Endings
from charwright.generation.engine import MOST_STEPS, MOST_STREAMS, Engine, Stream
from charwright.generation.sampling import Sampler

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

MOST_PROMPT = 1_000_000
"""Characters of a prompt. Nothing that a recurrent network reads so long before still tells in what it writes."""

Guard = Callable[[Ids], Mask]
"""From the ids so far to those that must not come next, (V,)."""

LONGEST_INCOMPLETE = 3  # ids that are no character yet: the bytes of one but the last

# A call of the engine takes about this long: short enough for a key to be answered at once, long enough to be worth it.
CALL_S = 0.008
MANY = 8  # texts that nobody watches letter by letter; a call may take longer, and there is less to do between calls
MANY_CALL_S = 0.05


@dataclass(eq=False)
class Paused:
    """A text put aside: where the engine is with it, and what was drawn of it that nobody has seen yet."""

    stream: Stream
    unshown: Ids
    """Of the beginning of a stop text, behind the end of a sentence, of a character that is not whole."""


@dataclass(eq=False)
class Draft:
    """One text while it is being written, and afterwards."""

    prompt: str
    config: GenerationConfig
    stream: Stream
    vocabulary: Vocabulary
    endings: Endings
    guard: Guard | None = None
    left: int = 0
    """Characters still to write."""
    ended: str | None = None
    """Why it ended: `length`, `stop`, `line`, `paragraph` or `sentence`; None while it goes on."""
    logprobs: list[float] = field(default_factory=list)
    """ln p of each character under the model itself, at temperature 1 and without masks, where they were asked for.

    It is not a number for what was drawn before a pause and shown after it.
    """
    _written: list[str] = field(default_factory=list)  # what `pop` takes
    _seen: int = 0  # ids decoded, counted from the very first
    _shown: int = 0  # characters
    _logprob: float = 0.0  # of the bytes of a character that is not whole yet
    _mask: Mask | None = None  # without the guard's
    _partial: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # the last ids, if no character yet
    _rest: str = ""  # drawn behind the end

    def __post_init__(self) -> None:
        """Begin to decode behind the prompt."""
        self._decoder = self.vocabulary.decoder()

    def pop(self) -> str:
        """What was written since the last call."""
        piece = "".join(self._written)
        self._written.clear()
        return piece

    @property
    def shown(self) -> int:
        """How many characters were written."""
        return self._shown

    def most_steps(self, wanted: int, *, one_by_one: bool) -> int:
        """How many steps this text can take before somebody must look at it."""
        reading = self.stream.unread - 1  # steps that draw nothing
        if self.guard is not None or (one_by_one and self.endings.waiting):
            return min(wanted, max(reading, 1))
        return min(wanted, reading + self.left)

    def guarded(self) -> None:
        """Keep the next draw from what the guard forbids, as long as anything else is left."""
        if self.guard is None or self.stream.unread > 1 or self._mask is None:
            return
        mask = self._mask | self.guard(self.stream.ids[: self.stream.length])
        assert self.stream.sampler.masked is not None
        self.stream.sampler.masked[:] = self._mask if mask.all() else mask

    def take_in(self) -> None:
        """Read what the engine has drawn."""
        stream = self.stream
        fresh = slice(self._seen - stream.forgotten, stream.length)
        self._seen = stream.forgotten + stream.length
        self.read(stream.ids[fresh], None if stream.scores is None else stream.scores[fresh])

    def read(self, ids: Ids, scores: Floats | None) -> None:
        """Go on with these ids, and ln p of each where they were asked for."""
        self._partial = incomplete(self.vocabulary, np.concatenate([self._partial, ids]))
        if scores is None:
            self._add(self._decoder.feed_all(ids))
            return
        for index, logprob in zip(ids.tolist(), scores.tolist(), strict=True):
            self._logprob += logprob
            if piece := self._decoder.feed(index):
                # A broken byte before a character makes two of them at once: the first gets it all.
                self.logprobs += [self._logprob, *([0.0] * (len(piece) - 1))]
                self._logprob = 0.0
                self._add(piece)
        del self.logprobs[self._shown if self.ended else len(self.logprobs) :]

    def paused(self) -> Paused:
        """What it takes to go on later, with another draft; this one must not go on any more."""
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
    """Steps all the texts that have joined, a few steps at a time."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary, *, one_by_one: bool = False) -> None:
        """With `one_by_one` the state of a text that met an ending is exactly the one behind it."""
        self.engine, self.vocabulary = engine, vocabulary
        self.drafts: list[Draft] = []
        self._one_by_one = one_by_one
        self._steps = 1  # in the next call

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
        """Begin a text, or go on with one from `start`, whose seed holds where `config` has none.

        `stream` is the index that, with the seed, keys its random numbers. A text that goes on begins with what was
        drawn of it and not shown, unless a prompt comes in between. It can end with that alone.

        One call joins one text, whatever the config's `num`. For `max_copy` there must be a guard
        (`CopyGuard(training ids, V, max_copy).forbidden`), since only the caller has the training text.

        Raises:
            UsageError: when nothing is left to write with, the prompt is too long, or the guard is missing.
        """
        if config.max_copy is not None and guard is None:
            raise UsageError("max_copy needs a guard that knows the training text: novelty.CopyGuard makes one")
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
        """Take a text out before its end."""
        self.drafts.remove(draft)

    def advance(self, most: int | None = None) -> list[Draft]:
        """Take some steps, `most` at most; texts that have ended leave. Returns all that took part.

        The first 64 that have joined and not ended go together: with more, each would wait longer and none be quicker.

        Raises:
            UsageError: when `most` is less than one.
        """
        if most is not None and most < 1:
            raise UsageError(f"a session advances by one step at least, not {most}")
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
        """Take twice or half as many steps next time, by how long they took."""
        if seconds < wanted_s / 2 and steps >= self._steps:
            self._steps = min(2 * self._steps, MOST_STEPS)
        elif seconds > 2 * wanted_s:
            self._steps = max(1, self._steps // 2)


def prompt_ids(vocabulary: Vocabulary, prompt: str) -> npt.NDArray[np.int32]:
    """The ids that a text begins with; an empty prompt begins as a line does.

    Raises:
        UsageError: when it is so long that reading it would take minutes.
    """
    if len(prompt) > MOST_PROMPT:
        raise prompt_is_too_long()
    return vocabulary.encode(prompt or ("\n" if not vocabulary.unknown_in("\n") else " "))


def prompt_is_too_long() -> UsageError:
    """What to say about it."""
    return UsageError(
        f"the prompt has more than {MOST_PROMPT:,} characters, and what stands so far before the end makes no"
        " difference: give the end of it"
    )


def incomplete(vocabulary: Vocabulary, ids: Ids) -> Ids:
    """The last of these ids that are no character yet: bytes of one that has more."""
    if vocabulary.unit != "byte":
        return ids[:0]
    for size in range(min(LONGEST_INCOMPLETE, len(ids)), 0, -1):
        if not vocabulary.decoder().feed_all(ids[-size:]):
            return ids[-size:]
    return ids[:0]


def allowed(vocabulary: Vocabulary, config: GenerationConfig) -> Mask:
    """The ids (V,) that may be drawn: not [UNK], nothing that is banned, and of the only ones where they are named.

    Raises:
        UsageError: when none is left.
    """
    if len(vocabulary) < 2:
        raise UsageError("this model's vocabulary has no characters to write with")
    mask = np.ones(len(vocabulary), dtype=np.bool_)
    if config.only is not None:
        mask[:] = False
        mask[_ids_of(vocabulary, config.only, "--only")] = True
        mask[UNKNOWN_ID] = False
        if not mask.any():
            raise UsageError(f"--only: the model knows no character of {config.only!r}")
    mask[_ids_of(vocabulary, config.ban, "--ban")] = False
    mask[UNKNOWN_ID] = False
    if not mask.any():
        raise UsageError(
            f"{'--only and --ban leave' if config.only else '--ban leaves'} the model no character to write"
        )
    return mask


def _ids_of(vocabulary: Vocabulary, characters: str, flag: str) -> npt.NDArray[np.int32]:
    if vocabulary.unit == "byte" and not characters.isascii():
        raise UsageError(f"{flag}: this model writes bytes, and {characters!r} has characters of several")
    return vocabulary.encode(characters)


def _sampler(config: GenerationConfig, mask: Mask, before: Sampler, stream: int, going_on: bool) -> Sampler:
    seed, index = (before.seed, before.stream) if going_on and config.seed is None else (config.seed or 0, stream)
    return Sampler(
        config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty, mask, seed, index
    )
