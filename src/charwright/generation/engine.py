"""The network one step at a time: arrays in, ids out, without PyTorch.

What does the arithmetic is the C kernels (`native.py`) or, where they were not built, numpy (`plain.py`). The input
side of the first layer is a table with a row for each token, made once.

Three precisions: `f32` is the model's own; `bf16` stores the weights in half the bytes; `q8` has 8-bit weights and
whole numbers throughout (`quantized.py`), so that a seed gives the same text on every machine.

B is the number of streams, V the vocabulary, H the units, L the layers, S the arrays of a state: 1 (h) or 2 (h and c).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charwright import kernels
from charwright.config import STATES, ModelConfig
from charwright.errors import UsageError
from charwright.generation.sampling import PENALTY_WINDOW, Sampler

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

PRECISIONS = ("q8", "bf16", "f32")
ROOM = 256  # ids a stream has room for, at least; the oldest are let go
MOST_STEPS = 1024
"""Steps of one call: so many can be waited for."""
MOST_STREAMS = 64
"""Streams that go together: more are no quicker, and need more memory."""


@dataclass
class Stream:
    """One text inside the engine: the state of the network, and the ids that were read, drawn, and are to be read."""

    state: npt.NDArray[Any] = field(repr=False)  # (L, S, H), changed in place
    ids: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int32), repr=False)  # with room behind the last
    length: int = 0  # how many ids there are
    at: int = 0  # which is read next
    drawing: bool = True  # draw the next id when all are read
    sampler: Sampler = field(default_factory=Sampler)
    drawn: int = 0  # random numbers used
    scores: Floats | None = field(
        default=None, repr=False
    )  # beside ids: ln p of each under the model, where it was computed
    logits: Floats | None = field(default=None, repr=False)  # (V,): those after the last step
    forgotten: int = 0  # ids let go

    @property
    def unread(self) -> int:
        """How many ids wait to be read. After a step of a stream that draws it is one at least."""
        return self.length - self.at

    def feed(self, ids: Ids) -> None:
        """Append ids that are to be read."""
        self.make_room(len(ids))
        self.ids[self.length : self.length + len(ids)] = ids
        self.length += len(ids)

    def make_room(self, more: int) -> None:
        """Have room for so many more ids, and let go of old ones that nothing looks back on."""
        if self.length + more <= len(self.ids):
            return
        first = max(0, self.at - PENALTY_WINDOW)
        kept = self.length - first
        size = max(ROOM, 2 * (kept + more))
        self.ids = _moved(self.ids, first, kept, size)
        if self.scores is not None:
            self.scores = _moved(self.scores, first, kept, size)
        self.length, self.at, self.forgotten = kept, self.at - first, self.forgotten + first


def _moved(array: npt.NDArray[Any], first: int, kept: int, size: int) -> npt.NDArray[Any]:
    moved = np.zeros(size, dtype=array.dtype)
    moved[:kept] = array[first : first + kept]
    return moved


class Backend(Protocol):
    """What does the arithmetic."""

    units: int
    state_type: type[np.float32] | type[np.int32]

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Take `steps` steps with all streams; each has as many ids to read, or draws."""


class Engine:
    """A model's weights laid out for single steps."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Array],
        precision: str = "q8",
        *,
        threads: int | None = None,
        variant: str | None = None,
    ) -> None:
        """Take the weights by the names of `ModelConfig.weight_shapes`.

        `threads` is how many the kernels may use, all cores by default; they find out how many are quickest. `variant`
        is one of `kernels.VARIANTS`, or `none` for numpy.

        Raises:
            UsageError: when the precision or the variant does not exist here.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if threads is not None and threads < 1:
            raise UsageError(f"an engine needs one thread at least, not {threads}")
        self.config, self.precision = config, precision
        self.vocabulary_size = len(weights["embedding.weight"])
        self._backend = _backend(config, weights, precision, threads or _cores(), variant)

    def zero_state(self, streams: int = 1) -> npt.NDArray[Any]:
        """The state (B, L, S, H) before the first character: float32, or int32 for q8.

        H is the model's units filled up to a multiple of 16.
        """
        shape = (streams, self.config.layers, STATES[self.config.cell], self._backend.units)
        return np.zeros(shape, dtype=self._backend.state_type)

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Take `steps` steps with all streams together.

        Each reads one id a step; a stream that has read all of its ids draws the next. So a stream that does not draw
        must have `steps` ids to read, and one that does, one at least.

        Raises:
            UsageError: when a stream has too few ids to read, or a state that is none of this engine's.
        """
        for stream in streams:
            self._check_state(stream.state[None])
            if not all(array.flags.c_contiguous for array in (stream.ids, stream.scores) if array is not None):
                raise UsageError("a stream's ids and scores must lie in one piece each")
            if stream.unread < (1 if stream.drawing else steps):
                raise UsageError(f"a stream has {stream.unread} ids to read, too few for {steps} steps")
            stream.make_room(steps + 1)
        if streams and steps > 0:
            self._backend.advance(streams, steps)

    def step(self, ids: npt.NDArray[np.integer], state: npt.NDArray[Any]) -> Floats:
        """Logits (B, V) after one more id for each stream, ids (B,). `state` (B, L, S, H) is changed in place.

        Raises:
            UsageError: when an id is outside the vocabulary, or the state none of this engine's.
        """
        self._check_ids(np.asarray(ids))
        self._check_state(state)
        logits = np.empty((len(ids), self.vocabulary_size), dtype=np.float64)
        streams = [
            Stream(state[row], np.array([i], dtype=np.int32), 1, drawing=False, logits=logits[row])
            for row, i in enumerate(ids)
        ]
        if streams:
            self._backend.advance(streams, 1)
        return logits

    def scores(self, rows: Sequence[Ids]) -> list[Floats]:
        """For each row of ids: ln p of each id after the first, given those before it, from a zero state.

        Raises:
            UsageError: when an id is outside the vocabulary.
        """
        streams = []
        for ids in rows:
            self._check_ids(np.asarray(ids))
            room = np.ascontiguousarray(ids, dtype=np.int32)
            state = self.zero_state()[0]
            streams.append(Stream(state, room, len(room), drawing=False, scores=np.zeros(len(room))))
        while going := [stream for stream in streams if stream.unread > 1]:
            self._backend.advance(going, min(MOST_STEPS, *(stream.unread - 1 for stream in going)))
        return [stream.scores[1:] for stream in streams if stream.scores is not None]

    def target_nats(self, inputs: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """-ln p of each target (T, B), given inputs (T, B), each column from a zero state.

        Targets of -1 at a column's end cost nothing; before that each target is the next input.
        """
        rows = [
            np.concatenate([before[:1], after[after >= 0]]) for before, after in zip(inputs.T, targets.T, strict=True)
        ]
        nats = np.zeros(targets.shape)
        for begin in range(0, len(rows), MOST_STREAMS):
            for column, scores in enumerate(self.scores(rows[begin : begin + MOST_STREAMS]), begin):
                nats[: len(scores), column] = -scores
        return nats

    def _check_ids(self, ids: npt.NDArray[np.integer]) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary_size):
            wrong = ids[(ids < 0) | (ids >= self.vocabulary_size)][0]
            raise UsageError(f"id {wrong} is outside the vocabulary of {self.vocabulary_size}")

    def _check_state(self, state: npt.NDArray[Any]) -> None:
        wanted = (self.config.layers, STATES[self.config.cell], self._backend.units)
        right = state.shape[1:] == wanted and state.dtype == self._backend.state_type
        if not (right and all(row.flags.c_contiguous and row.flags.writeable for row in state)):
            raise UsageError(
                f"this engine's states are {np.dtype(self._backend.state_type)} of shape (streams, "
                f"{', '.join(map(str, wanted))}), a row in one piece each: zero_state() makes them"
            )


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _backend(
    config: ModelConfig, weights: Mapping[str, Array], precision: str, threads: int, variant: str | None
) -> Backend:
    loaded = None if variant == "none" else kernels.load(variant)
    if loaded is not None:
        from charwright.generation.native import NativeBackend

        return NativeBackend(config, weights, precision, loaded, threads)
    if precision == "q8":
        from charwright.generation.plain import PlainWholeBackend

        return PlainWholeBackend(config, weights)
    from charwright.generation.plain import PlainBackend

    return PlainBackend(config, weights, narrow=precision == "bf16")
