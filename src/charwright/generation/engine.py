"""Run the network one step at a time: arrays in, ids out, without PyTorch.

The arithmetic is that of the C kernels (`native_backend.py`) or, if they are not built, of NumPy (`numpy_backend.py`).
The input product of the first layer is a table with a row per token, computed once.

Three precisions: `f32` is the model's own; `bf16` stores the weights in half the bytes; `q8` has int8 weights and
integer arithmetic throughout (`quantized.py`), so that a seed gives the same text on every machine.

B is the number of streams, V the vocabulary size, H the number of units, S the number of arrays in a state: 1 (h) or
2 (h and c). L is the number of rows of a state: one per layer and, with n-grams, one for the tokens before the next,
whose first K numbers (the n-grams' order less one) are those of `ngrams.moved_on` and whose other numbers are 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from charwright import kernels
from charwright.arrays import problem_of
from charwright.config import STATES, ModelConfig
from charwright.errors import UsageError
from charwright.generation.backend import Backend
from charwright.generation.native_backend import NativeBackend
from charwright.generation.repetition import PENALTY_WINDOW
from charwright.generation.streams import Stream
from charwright.processes import usable_cores
from charwright.schema import thread_count

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]

PRECISIONS = ("q8", "bf16", "f32")
MOST_STEPS = 1024
"""Steps of one call, which cannot be interrupted."""
MOST_STREAMS = 64
"""Streams in a batch: larger batches need more memory and are not faster."""


class Engine:
    """A model's weights laid out for single steps."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Float32s],
        precision: str = "q8",
        *,
        threads: int | None = None,
        variant: str | None = None,
    ) -> None:
        """Lay out the weights, named as in `ModelConfig.weight_shapes`.

        `threads` is the largest number of threads to use, by default one per core; the fastest number is found while
        the engine runs. `variant` is one of `kernels.VARIANTS`, or `none` for NumPy.

        Raises:
            UsageError: if the precision does not exist, the variant does not run on this machine, or the weights do not
                have the model's names and shapes, are not float32, or not finite.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        threads = thread_count(threads)
        self.config, self.precision = config, precision
        self.vocabulary_size = _tokens_of(config, weights)
        self._backend = _backend(config, weights, precision, threads or usable_cores(), variant)
        self._state_shape = (config.layers + bool(config.ngram_bits), STATES[config.cell], self._backend.units)

    def zero_state(self, streams: int = 1) -> npt.NDArray[Any]:
        """The state (B, L, S, H) before the first character: float32, or int32 for q8.

        H is the model's number of units, padded to a multiple of 16. L is its number of layers, and one more with
        n-grams: the last row holds the tokens before the next one.
        """
        return np.zeros((streams, *self._state_shape), dtype=self._backend.state_type)

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Run `steps` steps of all streams together.

        Each stream reads one id per step; a stream that has read all of its ids samples the next one. A stream with
        `drawing` needs at least one id to read, a stream without it `steps`.

        Raises:
            UsageError: if a stream has too few ids to read or one outside the vocabulary, or its state or buffers do
                not fit this engine.
        """
        for stream in streams:
            self._check_buffers(stream)
            if stream.unread < (1 if stream.drawing else steps):
                raise UsageError(f"a stream has {stream.unread} ids to read, too few for {steps} steps")
            # The id after the last step is looked up too, and a penalty counts those before the first.
            penalized = stream.drawing and stream.sampler.repetition_penalty != 1
            first = max(0, stream.at - PENALTY_WINDOW) if penalized else stream.at
            self._check_ids(stream.ids[first : min(stream.length, stream.at + steps + 1)])
            stream.make_room(steps + 1)
        if streams and steps > 0:
            self._backend.advance(streams, steps)

    def step(self, ids: npt.NDArray[np.integer], state: npt.NDArray[Any]) -> Float64s:
        """Return the logits (B, V) after one more id per stream, ids (B,). `state` (B, L, S, H) is changed in place.

        Raises:
            UsageError: if an id is outside the vocabulary, or the state does not fit this engine.
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

    def scores(self, rows: Sequence[Ids], states: npt.NDArray[Any] | None = None) -> list[Float64s]:
        """For each row of ids: ln p of each id after the first, given those before it.

        `states` (B, L, S, H), by default zero states, are those before the first id of each row. They are changed in
        place, to those before its last id, with which a row that continues this one begins.

        Raises:
            UsageError: if an id is outside the vocabulary, or the states do not fit this engine.
        """
        states = self.zero_state(len(rows)) if states is None else states
        self._check_state(states)
        streams = []
        for ids, state in zip(rows, states, strict=True):
            self._check_ids(np.asarray(ids))
            buffer = np.ascontiguousarray(ids, dtype=np.int32)
            streams.append(Stream(state, buffer, len(buffer), drawing=False, scores=np.zeros(len(buffer))))
        while active := [stream for stream in streams if stream.unread > 1]:
            self._backend.advance(active, min(MOST_STEPS, *(stream.unread - 1 for stream in active)))
        return [stream.scores[1:] for stream in streams if stream.scores is not None]

    def target_nats(self, inputs: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> Float64s:
        """-ln p of each target (T, B), given inputs (T, B), each column from a zero state; 0 for a -1 at its end.

        Raises:
            UsageError: if an id is outside the vocabulary, or an input but the first is not the target before it.
        """
        inputs, targets = np.asarray(inputs), np.asarray(targets)
        _check_reading(inputs, targets)
        nats = np.zeros(targets.shape)
        for begin in range(0, inputs.shape[1], MOST_STREAMS):
            columns = slice(begin, begin + MOST_STREAMS)
            states = self.zero_state(inputs[:, columns].shape[1])
            nats[:, columns] = self._nats(inputs[:, columns], targets[:, columns], states)
        return nats

    def continued_nats(
        self, inputs: npt.NDArray[np.integer], targets: npt.NDArray[np.integer], states: npt.NDArray[Any] | None
    ) -> tuple[Float64s, npt.NDArray[Any]]:
        """As `target_nats`, from `states` (B, L, S, H), which are changed in place and returned; None is zeros."""
        inputs, targets = np.asarray(inputs), np.asarray(targets)
        _check_reading(inputs, targets)
        states = self.zero_state(inputs.shape[1]) if states is None else states
        return self._nats(inputs, targets, states), states

    def _nats(
        self, inputs: npt.NDArray[np.integer], targets: npt.NDArray[np.integer], states: npt.NDArray[Any]
    ) -> Float64s:
        rows = [
            np.concatenate([before[:1], after[after >= 0]]) for before, after in zip(inputs.T, targets.T, strict=True)
        ]
        nats = np.zeros(targets.shape)
        for column, scores in enumerate(self.scores(rows, states)):
            nats[: len(scores), column] = -scores
        return nats

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: the weights are laid out for this processor, outside of Python's memory."""
        raise UsageError("an engine cannot be copied or pickled; make another from the weights")

    def _check_ids(self, ids: npt.NDArray[np.integer]) -> None:
        if ids.size and ids.dtype.kind not in "iu":
            raise UsageError(f"ids must be integers, not {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary_size):
            wrong = ids[(ids < 0) | (ids >= self.vocabulary_size)][0]
            raise UsageError(f"id {wrong} is outside the vocabulary of {self.vocabulary_size}")

    def _check_buffers(self, stream: Stream) -> None:
        """The kernels write into these arrays, wherever they lie."""
        if not self._is_state(stream.state):
            raise self._wrong_state()
        ids, scores, others, masked = stream.ids, stream.scores, stream.alternatives, stream.sampler.masked
        whole = (self.vocabulary_size,)
        if not (stream.logits is None or _is_array(stream.logits, np.float64, whole, written=True)):
            raise UsageError(f"a stream's logits must be a contiguous, writable array {whole} of float64")
        if not (masked is None or _is_array(masked, np.bool_, whole)):
            raise UsageError(f"a sampler's mask must be a contiguous array {whole} of bool")
        if not _is_array(ids, np.int32, ids.shape[:1], written=stream.drawing) or not (
            scores is None or _is_array(scores, np.float64, ids.shape, written=True)
        ):
            raise UsageError(
                "a stream's ids (int32) and scores (float64) must be contiguous, writable arrays of the same length"
            )
        if others is not None:
            shape = (len(ids), *others.ids.shape[1:])
            if not (
                0 < others.ids.shape[-1] <= self.vocabulary_size
                and len(shape) == 2
                and _is_array(others.ids, np.int32, shape, written=True)
                and _is_array(others.scores, np.float64, shape, written=True)
            ):
                raise UsageError(
                    "a stream's alternatives must be contiguous arrays of ids (int32) and scores (float64), for each "
                    f"of its ids 1 to {self.vocabulary_size} of them"
                )

    def _check_state(self, state: npt.NDArray[Any]) -> None:
        if state.ndim != 4 or state.dtype != self._backend.state_type or not all(map(self._is_state, state)):
            raise self._wrong_state()

    def _is_state(self, row: npt.NDArray[Any]) -> bool:
        return _is_array(row, self._backend.state_type, self._state_shape, written=True)

    def _wrong_state(self) -> UsageError:
        return UsageError(
            f"this engine's states are {np.dtype(self._backend.state_type)} arrays of shape (streams, "
            f"{', '.join(map(str, self._state_shape))}) with contiguous, writable rows; zero_state() returns one"
        )


def _tokens_of(config: ModelConfig, weights: Mapping[str, Float32s]) -> int:
    """The tokens of the weights' vocabulary, once the weights fit the model: the kernels read where its shapes say."""
    tokens: int = (*np.shape(weights.get("embedding.weight", ())), 0)[0]
    if problem := problem_of(dict(weights), config.weight_shapes(tokens)):
        raise UsageError(f"these are not the weights of the model: {problem}")
    return tokens


def _is_array(
    array: npt.NDArray[Any], kind: type[np.generic], shape: tuple[int, ...], *, written: bool = False
) -> bool:
    fits = array.shape == shape and array.dtype == kind and array.flags.c_contiguous
    return fits and (array.flags.writeable or not written)


def _backend(
    config: ModelConfig, weights: Mapping[str, Float32s], precision: str, threads: int, variant: str | None
) -> Backend:
    loaded = None if variant == "none" else kernels.load(variant)
    if loaded is not None:
        return NativeBackend(config, weights, precision, loaded, threads)
    from charwright.generation.numpy_backend import Int8NumpyBackend, NumpyBackend

    if precision == "q8":
        return Int8NumpyBackend(config, weights)
    return NumpyBackend(config, weights, narrow=precision == "bf16")


def _check_reading(inputs: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> None:
    """Check that inputs and targets are those of texts that are read from one end to the other."""
    if inputs.ndim != 2 or inputs.shape != targets.shape:
        raise UsageError(f"inputs and targets have one shape (T, B), not {inputs.shape} and {targets.shape}")
    given = targets >= 0
    if (targets < -1).any() or (given[1:] > given[:-1]).any():
        raise UsageError("targets are ids, and -1 only at the end of a column")
    if (inputs[1:] != targets[:-1])[given[1:]].any():
        raise UsageError("each input but the first of a column must be the target before it")
