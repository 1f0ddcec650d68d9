"""What each id of a text costs a model: the text read along, in streams side by side, or each record on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.data.carried import stream_bounds
from charwright.generation.engine import MOST_STREAMS, Engine
from charwright.generation.streams import Float64s, Ids

BLOCK = 1 << 20
"""Characters that are cut into streams at once."""


@dataclass
class AlongTheText:
    """Reads a text in blocks, with the state carried from each to the next.

    A block is cut into streams as `evaluate` cuts a text. The first one continues the previous block; the others begin
    with a zero state, after `warm_up` ids that are read without being scored.
    """

    engine: Engine
    warm_up: int = 0
    _before: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int32), init=False)  # the last ids, for warm-ups
    _state: npt.NDArray[Any] | None = field(default=None, init=False)  # (1, L, S, H), before the last of them

    def nats(self, ids: Ids) -> tuple[Float64s, list[int]]:
        """-ln p (N,) of the next ids (N,), and the positions among them where later streams begin with a zero state.

        The first id of the text is not predicted, and costs 0.
        """
        known = len(self._before)
        whole = np.concatenate([self._before, ids])
        at = max(known - 1, 0)  # The id before the first that is predicted now.
        bounds = [at + bound for bound in stream_bounds(len(whole) - 1 - at)]
        warm_ups = [0, *(min(self.warm_up, begin) for begin in bounds[1:-1])]
        rows = [whole[begin - more : end + 1] for (begin, end), more in zip(pairwise(bounds), warm_ups, strict=True)]
        states = self.engine.zero_state(len(rows))
        if self._state is not None:
            states[:1] = self._state
        scores = self.engine.scores(rows, states)
        nats = -np.concatenate([one[more:] for one, more in zip(scores, warm_ups, strict=True)])
        self._state, self._before = states[-1:], whole[-(self.warm_up + 1) :]
        cold = [begin + 1 - known for begin, more in zip(bounds[1:-1], warm_ups[1:], strict=True) if not more]
        return (nats, cold) if known else (np.concatenate([[0.0], nats]), cold)


@dataclass
class RecordByRecord:
    """Reads each record from a zero state, after the ids `context` (N,) that come before every one of them."""

    engine: Engine
    context: Ids
    _open: tuple[npt.NDArray[Any], Ids] | None = field(default=None, init=False)  # the state, and the id that is next

    def nats(self, records: Sequence[Ids], *, continues: bool) -> Float64s:
        """-ln p (N,) of all ids of some records, one after the other.

        If it `continues`, the first of them is the rest of the last one before.
        """
        rows = [np.concatenate([self.context, ids]) for ids in records]
        first, last = 0, len(rows) - 1
        before = self._open if continues else None
        if before is not None:
            rows[first] = np.concatenate([before[1], records[first]])
        nats: list[Float64s] = [np.zeros(0)] * len(rows)
        # Records of similar length take the same steps.
        for some in _groups(np.argsort([-len(row) for row in rows], kind="stable")):
            states = self.engine.zero_state(len(some))
            if before is not None and first in some:
                states[some.index(first)] = before[0]
            for index, scores in zip(some, self.engine.scores([rows[index] for index in some], states), strict=True):
                nats[index] = -scores[len(scores) - len(records[index]) :]
            if last in some:
                self._open = states[some.index(last)].copy(), rows[last][-1:]
        return np.concatenate(nats)


def _groups(order: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    for begin in range(0, len(order), MOST_STREAMS):
        yield order[begin : begin + MOST_STREAMS].tolist()
