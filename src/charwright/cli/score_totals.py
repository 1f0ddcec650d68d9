"""What `charwright score` counts while it scores: the sums of all records, and how many are listed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charwright.generation.record_scores import Score

Figure = Callable[["Score"], float]
"""The figure of a record by which it is ranked or listed."""


@dataclass
class Totals:
    """What all records cost together."""

    name: str
    records: int = 0
    chars: int = 0
    unknown_chars: int = 0
    bits: float = 0.0
    cold: int = 0
    limit: float | None = None
    above_limit: int = 0
    interrupted: bool = False
    _awaited: bool = False

    def counted(self, scores: Iterable[Score]) -> Iterator[Score]:
        """Yield the scores, and add them up, until there are no more or `interrupt` was called."""
        left = iter(scores)
        while (score := self._next(left)) is not None:
            self.records += 1
            self.chars += score.chars
            self.unknown_chars += score.unknown_chars
            self.bits += score.bits
            self.cold += score.cold
            yield score

    def interrupt(self, *_: object) -> None:
        """End the scores, as a handler of Ctrl-C: at once if the next is awaited, as from a pipe, or at the second."""
        again, self.interrupted = self.interrupted, True
        if self._awaited or again:
            raise KeyboardInterrupt

    def _next(self, scores: Iterator[Score]) -> Score | None:
        if self.interrupted:
            return None
        try:
            self._awaited = True
            return next(scores, None)
        except KeyboardInterrupt:
            self.interrupted = True
            return None
        finally:
            self._awaited = False

    def listed(self, scores: Iterable[Score], figure: Figure, min_chars: int, limit: float | None) -> Iterator[Score]:
        """Yield the scores of records that are long enough and above a limit, if there is one, and count them."""
        self.limit = limit
        for score in scores:
            if score.chars >= min_chars and (limit is None or (score.chars > 0 and figure(score) > limit)):
                self.above_limit += 1
                yield score

    def notes(self) -> Iterator[str]:
        """The sums in words."""
        if self.interrupted:
            yield "interrupted; this is what was read so far"
        records = _counted(self.records, self.name)
        if not self.chars:
            yield f"{records}, no character to predict"
            return
        unknown = f", {self.unknown_chars:,} of them not in the vocabulary" if self.unknown_chars else ""
        bits = self.bits / self.chars
        yield (
            f"{records}, {_counted(self.chars, 'character')} predicted{unknown}: "
            f"{bits * math.log(2):.4f} nats per character ({bits:.4f} bits)"
        )
        if self.limit is not None:
            yield f"{_counted(self.above_limit, self.name)} above {self.limit:g}"
        if self.cold:
            yield (
                f"in {_counted(self.cold, self.name)} (marked *; `cold` in JSON and CSV) the model begins with a zero "
                "state, as in evaluate, which costs more; avoid that with --warm-up 256"
            )


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
