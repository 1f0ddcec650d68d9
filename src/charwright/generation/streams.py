"""The state of one text inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.generation.repetition import PENALTY_WINDOW
from charwright.generation.sampling import Sampler

Ids = npt.NDArray[np.int32]
Float64s = npt.NDArray[np.float64]

ROOM = 256
"""The smallest capacity of a stream's buffer, in ids. The oldest ids are dropped."""


@dataclass(frozen=True, eq=False)
class Alternatives:
    """The K most likely ids at each position of a stream under the model, whatever the sampler allows.

    The likeliest comes first; of equals, the smaller id.
    """

    ids: Ids  # (capacity, K)
    scores: Float64s  # (capacity, K): ln p of each, at temperature 1

    @classmethod
    def of(cls, count: int, capacity: int = 0) -> Alternatives:
        """Zeros for `count` alternatives, at most V, at each of `capacity` positions."""
        return cls(np.zeros((capacity, count), dtype=np.int32), np.zeros((capacity, count)))


@dataclass
class Stream:
    """One text inside the engine: the network's state, and the ids that were read, sampled, or are still to be read."""

    state: npt.NDArray[Any] = field(repr=False)  # (L, S, H) of `Engine`, changed in place
    ids: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int32), repr=False)  # a buffer; `length` are in use
    length: int = 0
    at: int = 0  # index of the id that is read next
    drawing: bool = True  # sample the next id when all are read
    sampler: Sampler = field(default_factory=Sampler)
    drawn: int = 0  # random numbers used
    scores: Float64s | None = field(default=None, repr=False)  # for each of `ids`: ln p under the model, if computed
    logits: Float64s | None = field(default=None, repr=False)  # (V,): after the last step
    forgotten: int = 0  # ids dropped from the buffer
    alternatives: Alternatives | None = field(default=None, repr=False)  # for each of `ids`, if computed

    native: Any = field(default=None, init=False, repr=False, compare=False)  # kept by native_backend.py between calls

    @property
    def unread(self) -> int:
        """The number of ids to read. At least 1 after a step of a stream that samples."""
        return self.length - self.at

    def feed(self, ids: Ids) -> None:
        """Append ids to read."""
        self.make_room(len(ids))
        self.ids[self.length : self.length + len(ids)] = ids
        self.length += len(ids)

    def make_room(self, more: int) -> None:
        """Make room for `more` ids. Drop ids that are older than the repetition penalty's window."""
        if self.length + more <= len(self.ids):
            return
        first = max(0, self.at - PENALTY_WINDOW)
        kept = self.length - first
        size = max(ROOM, 2 * (kept + more))
        self.ids = _moved(self.ids, first, kept, size)
        if self.scores is not None:
            self.scores = _moved(self.scores, first, kept, size)
        if (others := self.alternatives) is not None:
            moved = (_moved(array, first, kept, size) for array in (others.ids, others.scores))
            self.alternatives = Alternatives(*moved)
        self.length, self.at, self.forgotten = kept, self.at - first, self.forgotten + first


def _moved(array: npt.NDArray[Any], first: int, kept: int, size: int) -> npt.NDArray[Any]:
    moved = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    moved[:kept] = array[first : first + kept]
    return moved
