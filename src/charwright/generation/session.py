"""Continuous batching: each text has its own prompt, seed, options and end, and may join or leave at any step.

No text depends on the others in the batch. `Generator` is built on this, and so can a server be.
"""

from __future__ import annotations

import time

import numpy as np

from charwright.config import GenerationConfig
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.draft import Draft, Guard, Paused
from charwright.generation.endings import Endings
from charwright.generation.engine import MOST_STEPS, MOST_STREAMS, Engine
from charwright.generation.masks import Mask, allowed
from charwright.generation.sampling import Sampler
from charwright.generation.streams import Alternatives, Ids, Stream

MOST_PROMPT = 1_000_000
"""Characters of a prompt. What a recurrent network read further back no longer affects what it generates."""

MOST_ALTERNATIVES = 20
"""Alternatives to a character: more are of no use to a reader, and sorting them takes time."""

# The target duration of an engine call: short enough to respond to a key at once, long enough to amortize the call.
CALL_S = 0.008
MANY = 8  # More texts than this are not watched letter by letter: longer calls reduce the overhead.
MANY_CALL_S = 0.05
# A text samples on behind its end until the call is over, so calls are shorter than records.
RECORD_SHARE = 3
FEWEST_STEPS = 4


class Session:
    """Generate all texts that have joined, a few steps at a time."""

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, *, one_by_one: bool = False, call_s: float | None = None
    ) -> None:
        """With `one_by_one`, the state of a text that has ended is exactly the state after its end.

        Without it, a text may have sampled more than it shows, which a text that continues it begins with. `call_s` is
        the target duration of a call of the engine: 0.008 s by default, and 0.05 s for more than 8 texts.

        Raises:
            UsageError: if `call_s` is not positive.
        """
        if call_s is not None and call_s <= 0:
            raise UsageError(f"a call takes more than {call_s:g} seconds")
        self.engine, self.vocabulary = engine, vocabulary
        self.drafts: list[Draft] = []
        self._one_by_one, self._call_s = one_by_one, call_s
        self._steps = 1  # of the next call
        self._records, self._record_chars = 0, 0  # that have ended

    def join(
        self,
        prompt: str,
        config: GenerationConfig,
        stream: int = 0,
        *,
        guard: Guard | None = None,
        logprobs: bool = False,
        start: Paused | None = None,
        context: Ids | None = None,
        record_end: str | None = None,
        alternatives: int = 0,
        echo: bool = False,
        score_only: bool = False,
    ) -> Draft:
        """Start a text, or continue `start`, with its own seed if `config` has none.

        The seed and `stream`, the index of the text, are the key of its random numbers. A continued text begins with
        the ids that were sampled but not shown, unless a prompt is given. They alone may end it.

        The ids of `context` (C,) are read before the prompt, such as the end of a record and a label; an empty prompt
        then adds nothing. A text with a `record_end` ends before it.

        One call joins one text, regardless of the config's `num`. `max_copy` requires a guard
        (`CopyGuard(training ids, V, max_copy)`), since only the caller has the training text.

        `logprobs` fills `Draft.logprobs`; `alternatives`, from 1 to 20, does too, and fills `Draft.alternatives` with
        so many for each character, or with all V if there are fewer. With `echo`, the characters of the prompt get
        whichever of these was requested, in `Draft.prompt_logprobs` and `Draft.prompt_alternatives`. With `score_only`
        nothing is generated, regardless of the config's `length`: the text ends when the scores of its prompt are
        known, which may be at once.

        Raises:
            UsageError: if no id is allowed, the prompt is too long, the guard is missing, the model generates bytes
                and alternatives are requested, a continued text has a context, or its prompt is to be scored.
        """
        if config.max_copy is not None and guard is None:
            raise UsageError("max_copy requires a guard with the training text: create one with charwright.CopyGuard")
        limit = getattr(getattr(guard, "__self__", guard), "limit", None)
        if config.max_copy is not None and limit not in (None, config.max_copy):
            raise UsageError(f"max_copy is {config.max_copy}, and its guard allows {limit}")
        if start is not None and (echo or score_only):
            raise UsageError("the prompt of a continued text cannot be scored: echo and score_only need a new text")
        if start is not None and context is not None:
            raise UsageError("a continued text has its context already")
        ids, mask = prompt_ids(self.vocabulary, prompt, context), ~allowed(self.vocabulary, config, record_end)
        track = Stream(self.engine.zero_state()[0]) if start is None else start.stream
        self._request_scores(track, alternatives, logprobs=logprobs)
        if prompt or start is None:
            track.feed(ids)
        track.sampler = _sampler(
            config, mask if guard is None else mask.copy(), track.sampler, stream, start is not None
        )
        if start is not None and config.seed is not None:
            track.drawn = 0
        endings = Endings(config.stop, config.until, record_end)
        draft = Draft(prompt, config, track, self.vocabulary, endings, guard, left=config.length)
        draft._mask, draft._seen = mask, track.forgotten + track.length
        if echo and prompt and track.scores is not None:
            before = 0 if context is None else len(context)
            draft.score_prompt(ids[before:], before)
        if score_only:
            draft.generate_nothing()
        if start is not None and not prompt:
            draft.read_again(start.unshown)
        if draft.ended is None:
            self.drafts.append(draft)
        return draft

    def leave(self, draft: Draft) -> None:
        """Remove a text before its end, if it has not left yet."""
        if draft in self.drafts:
            self.drafts.remove(draft)

    def advance(self, most: int | None = None) -> list[Draft]:
        """Run a few steps, at most `most`, and return the drafts that took part. Drafts that have ended leave.

        The first 64 drafts form the batch; the others wait for a place. A larger batch makes each text slower, and none
        faster. Drafts with a guard, once they have read their prompts, form a batch of their own, of 64 too: a guard
        needs a call for each step. It advances for about as long as the call of the first batch took.

        Raises:
            UsageError: if `most` is less than 1.
        """
        if most is not None and most < 1:
            raise UsageError(f"a session advances by at least one step, not {most}")
        most = most or MOST_STEPS
        watched = [draft for draft in self.drafts if draft.watched][:MOST_STREAMS]
        drafts = [draft for draft in self.drafts if not draft.watched][:MOST_STREAMS]
        seconds = self._advance_at_once(drafts, most) if drafts else self._wanted_s(watched)
        self._advance_by_single_steps(watched, most, seconds)
        ended = [draft for draft in drafts if draft.ended and draft.endings.record_end]
        self._records += len(ended)
        self._record_chars += sum(draft.shown for draft in ended)
        self.drafts = [draft for draft in self.drafts if draft.ended is None]
        return drafts + watched

    def _advance_at_once(self, drafts: list[Draft], most: int) -> float:
        """One call of several steps. Returns its duration."""
        limit = min(draft.most_steps(one_by_one=self._one_by_one) for draft in drafts)
        if all(draft.endings.record_end for draft in drafts):
            limit = min(limit, self._record_steps(drafts))
        steps = min(most, self._steps, limit, max(draft.needed for draft in drafts))
        began = time.perf_counter()
        self._call(drafts, steps)
        seconds = time.perf_counter() - began
        self._learn(steps, seconds, self._wanted_s(drafts))
        return seconds

    def _advance_by_single_steps(self, drafts: list[Draft], most: int, seconds: float) -> None:
        """Single steps of drafts with guards, for so many seconds or until all have ended."""
        end = time.perf_counter() + seconds
        while drafts and most > 0:
            for draft in drafts:
                draft.guarded()
            self._call(drafts, 1)
            drafts = [draft for draft in drafts if draft.ended is None]
            most = most - 1 if time.perf_counter() < end else 0

    def _record_steps(self, drafts: list[Draft]) -> int:
        """What all have to read, and a third of the usual length of a record, as far as it is known."""
        reading = min(draft.stream.unread for draft in drafts)
        shown = self._record_chars + sum(draft.shown for draft in drafts)
        return reading + max(FEWEST_STEPS, shown // (self._records + len(drafts)) // RECORD_SHARE)

    def _call(self, drafts: list[Draft], steps: int) -> None:
        try:
            self.engine.advance([draft.stream for draft in drafts], steps)
        finally:
            for draft in drafts:
                draft.take_in()

    def _wanted_s(self, drafts: list[Draft]) -> float:
        return self._call_s or (MANY_CALL_S if len(drafts) > MANY else CALL_S)

    def _request_scores(self, stream: Stream, alternatives: int, *, logprobs: bool) -> None:
        if not 0 <= alternatives <= MOST_ALTERNATIVES:
            raise UsageError(f"a character has from 0 to {MOST_ALTERNATIVES} alternatives, not {alternatives}")
        if alternatives and self.vocabulary.level == "byte":
            raise UsageError("this model generates bytes: only a model of characters has alternatives to a character")
        capacity, count = len(stream.ids), min(alternatives, len(self.vocabulary))
        stream.scores = np.zeros(capacity) if logprobs or count else None
        stream.alternatives = Alternatives.of(count, capacity) if count else None

    def _learn(self, steps: int, seconds: float, wanted_s: float) -> None:
        """Double or halve the number of steps of the next call, by the time of this one."""
        if seconds < wanted_s / 2 and steps >= self._steps:
            self._steps = min(2 * self._steps, MOST_STEPS)
        elif seconds > 2 * wanted_s:
            self._steps = max(1, self._steps // 2)


def prompt_ids(vocabulary: Vocabulary, prompt: str, context: Ids | None = None) -> Ids:
    """The ids of a prompt, behind those of its context (C,).

    With neither, a newline is read: generation starts at the beginning of a line.

    Raises:
        UsageError: if it is so long that reading it would take minutes.
    """
    if len(prompt) > MOST_PROMPT:
        raise prompt_is_too_long()
    if context is not None and len(context):
        return np.concatenate([context, vocabulary.encode(prompt)])
    return vocabulary.encode(prompt or ("\n" if not vocabulary.unknown_in("\n") else " "))


def prompt_is_too_long() -> UsageError:
    """The error for a prompt that is too long."""
    return UsageError(
        f"the prompt has more than {MOST_PROMPT:,} characters, and text that far back makes no difference: pass only"
        " its end"
    )


def _sampler(config: GenerationConfig, mask: Mask, before: Sampler, stream: int, resumed: bool) -> Sampler:
    seed, index = (before.seed, before.stream) if resumed and config.seed is None else (config.seed or 0, stream)
    return Sampler(
        config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty, mask, seed, index
    )
