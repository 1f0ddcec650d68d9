"""Admission: how many texts the service holds, and how many each caller has."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from charwright.generation.engine import MOST_STREAMS
from charwright.serve.limits import ServiceConfig
from charwright.serve.refusals import Refusal, busy

LONGEST_RETRY_S = 60
"""Clients do not obey a longer Retry-After."""
WEIGHT = 0.05  # of the latest text in the mean duration, once there were many


class Admission:
    """Counts the texts that one model holds, and admits more as long as there is room.

    A text counts from its admission until its end, and `MOST_STREAMS` of them are generated at a time: as many as
    that and `max_waiting` may be held.
    """

    def __init__(
        self, limits: ServiceConfig, callers: Counter[str], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start empty. `callers`, the texts of each caller, is shared by all models."""
        self._limits, self._callers, self._clock = limits, callers, clock
        self.held = 0
        """Texts admitted and not ended."""
        self.started = 0
        """Those of them that have a place in the batch."""
        self._ended = 0  # texts that had a place and have ended
        self._text_s = 1.0  # their mean duration
        self._starts_s = 0.0  # the sum of the times when those in the batch got their places

    @property
    def waiting(self) -> int:
        """Texts that wait for a place."""
        return self.held - self.started

    def admit(self, caller: str, texts: int) -> None:
        """Count the texts of a request.

        Raises:
            Refusal: 429 if the caller has too many texts, 503 if the service is full.
        """
        has, most = self._callers[caller], self._limits.max_per_caller
        if has + texts > most:
            message = (
                f"you have {has} texts in progress, and the limit is {most}" if has else f"the limit is {most} texts"
            )
            raise busy(429, message, self.retry_s(), "caller")
        if self.held + texts > MOST_STREAMS + self._limits.max_waiting:
            raise self.full("full")
        self._callers[caller] += texts
        self.held += texts

    def full(self, reason: str) -> Refusal:
        """The refusal when there is no room: the queue is `full`, or the `wait` for a place was too long."""
        return busy(503, "the service is full", self.retry_s(), reason)

    def start(self) -> None:
        """Count a text that has got a place."""
        self.started += 1
        self._starts_s += self._clock()

    def end(self, caller: str, seconds: float | None) -> None:
        """Count a text that has ended, `seconds` after it got a place, or without one."""
        self.held -= 1
        if seconds is not None:
            self.started -= 1
            self._starts_s -= self._clock() - seconds
            self._ended += 1
            self._text_s += max(WEIGHT, 1 / self._ended) * (seconds - self._text_s)
        self._callers[caller] -= 1
        if self._callers[caller] <= 0:
            del self._callers[caller]

    def retry_s(self) -> int:
        """In how many seconds those that wait now will probably have got a place, at least 1."""
        rounds = 1 + self.waiting / MOST_STREAMS
        return max(1, min(LONGEST_RETRY_S, math.ceil(rounds * self._expected_s())))

    def _expected_s(self) -> float:
        """How long a text takes: as long as the last ones, or twice the age of those in the batch.

        On average these are at half of their time. Among those that have ended, long ones may still be missing.
        """
        if not self.started:
            return self._text_s
        age_s = self._clock() - self._starts_s / self.started
        return max(self._text_s, 2 * age_s)
