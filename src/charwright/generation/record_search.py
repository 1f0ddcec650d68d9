"""Write records, a batch of 64 at a time, or only new ones: what is known already is thrown away, and more are tried.

Texts are judged in the order of their indices, whatever the order in which they end, so that a seed gives the same
records in the same order.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from charwright.config import GenerationConfig
from charwright.generation.completions import Completion, finished
from charwright.generation.draft import Draft, Guard
from charwright.generation.engine import MOST_STREAMS
from charwright.generation.known_records import KnownRecords
from charwright.generation.openings import Opening
from charwright.generation.session import Session

MOST_TRIES, TRIES_PER_RECORD = 1000, 20
"""Texts that are tried at most: 1,000, and 20 for each record that is wanted."""
FRUITLESS = 500
"""After so many texts in a row without a new record, no more are tried."""
AHEAD = 1024
"""Texts that may wait for an earlier one to end."""
SPARE = 8


class RecordSearch:
    """A search for records; `advance` until it is `done`."""

    def __init__(
        self,
        session: Session,
        config: GenerationConfig,
        opening: Callable[[int], Opening],
        record_end: str,
        known: KnownRecords | None,
        *,
        prompt: str = "",
        guard: Guard | None = None,
        logprobs: bool = False,
    ) -> None:
        """Look for `config.num` records that begin with the prompt and are new.

        Where nothing is `known`, every text is taken, one without an end too. `opening` is called with the index of a
        text. The session must have no other texts.
        """
        self.tries = self.found = 0
        """Texts that were judged, and those of them that were taken."""
        self.thrown_away: Counter[str] = Counter()
        """How many were thrown away for each reason, in words."""
        self._session, self._config, self._opening, self._end = session, config, opening, record_end
        self._known, self._prompt, self._guard, self._logprobs = known, prompt, guard, logprobs
        self._most = MOST_TRIES + TRIES_PER_RECORD * config.num
        self._fruitless = 0
        self._joined = 0
        self._waiting: deque[tuple[Draft, str | None]] = deque()  # with their labels

    @property
    def complete(self) -> bool:
        """Whether as many as wanted are found."""
        return self.found == self._config.num

    @property
    def done(self) -> bool:
        """Whether it is complete, or so many texts were in vain that it is given up."""
        return self.complete or self.tries == self._most or self._fruitless == FRUITLESS

    def advance(self) -> list[Completion]:
        """Generate for a few steps. Return the records that are taken now, in the order of their indices."""
        self._join()
        self._session.advance()
        found = []
        while not self.done and self._waiting and self._waiting[0][0].ended is not None:
            draft, label = self._waiting.popleft()
            completion = finished(draft, logprobs=self._logprobs, label=label)
            if self._takes(completion):
                found.append(completion)
        return found

    def report(self) -> str | None:
        """How many texts were thrown away and why, in a line; None if none were."""
        if not self.thrown_away:
            return None
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.thrown_away.most_common())
        return f"threw away {self.thrown_away.total():,}: {reasons}"

    def shortfall(self) -> str | None:
        """What is missing and what to do about it, in a line; None if nothing is."""
        if self.complete:
            return None
        [(reason, _)] = self.thrown_away.most_common(1) or [("", 0)]
        advice = "raise --temperature, or train on more records"
        if reason.startswith("without"):
            advice = "raise --length"
        elif reason.startswith("within"):
            advice = "lower --distance, or " + advice
        return f"found {self.found:,} of {self._config.num:,} new records in {self.tries:,} tries; {advice}"

    def _join(self) -> None:
        """Start texts: at most 64 at a time, and not many more than are needed if all of them are taken."""
        places, wanted = MOST_STREAMS - len(self._session.drafts), self._config.num - self.found
        ahead = min(AHEAD, wanted if self._known is None else 2 * wanted + SPARE) - len(self._waiting)
        for _ in range(min(places, ahead, self._most - self._joined)):
            opening = self._opening(self._joined)
            draft = self._session.join(
                self._prompt,
                self._config,
                self._joined,
                guard=self._guard,
                logprobs=self._logprobs,
                context=opening.ids,
                record_end=self._end,
            )
            self._waiting.append((draft, opening.label))
            self._joined += 1

    def _takes(self, completion: Completion) -> bool:
        self.tries += 1
        if self._known is None:
            self.found += 1
            return True
        record = str(completion)
        ended = completion.ended == "record"
        reason = self._known.reason(record) if ended else f"without an end within {self._config.length:,} characters"
        self._fruitless = 0 if reason is None else self._fruitless + 1
        if reason is not None:
            self.thrown_away[reason] += 1
            return False
        self._known.add(record)
        self.found += 1
        return True
