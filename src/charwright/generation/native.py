"""The engine's arithmetic in the C kernels: weights laid out for them once, and streams handed over by address."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from charwright import kernels
from charwright.config import GATES, ModelConfig
from charwright.generation import quantized as whole
from charwright.generation.plain import bf16_bits, padded
from charwright.generation.sampling import PENALTY_FROM, PENALTY_WINDOW

if TYPE_CHECKING:
    from charwright.generation.engine import Stream
    from charwright.generation.sampling import Sampler

Array = npt.NDArray[np.float32]
Anything = npt.NDArray[Any]


class NativeBackend:
    """The kernels, with a model's weights as they want them."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Array], precision: str, loaded: kernels.Kernels, threads: int
    ) -> None:
        """Lay out the weights by the names of `ModelConfig.weight_shapes`."""
        self.units = padded(config.units)
        self.state_type: type[np.float32] | type[np.int32] = np.int32 if precision == "q8" else np.float32
        self._config, self._precision, self._kernels = config, precision, loaded
        self._layout = loaded.layout(precision, config.cell)
        self._threads = _Threads(threads)
        self._kept: list[Any] = []  # what the model below points at
        self._model = self._whole_model(weights) if precision == "q8" else self._float_model(weights)

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Take `steps` steps with all streams; each has as many ids to read, or draws."""
        texts = (kernels.Text * len(streams))(*(_text(stream) for stream in streams))
        try:
            with self._threads.timed(len(streams), steps) as threads:
                self._kernels.write(self._model, threads, texts, steps)
        finally:  # The kernels have moved on even where Ctrl-C was pressed meanwhile.
            for stream, text in zip(streams, texts, strict=True):
                stream.length, stream.at, stream.drawn = text.length, text.at, text.sampler.drawn

    # Laying out. Arrays are kept, since the model holds addresses alone. All goes part by part, so that hardly more
    # memory is needed than the weights take in the end.

    def _float_model(self, weights: Mapping[str, Array]) -> kernels.Model:
        config, layers = self._config, range(self._config.layers)
        embedding, inputs = weights["embedding.weight"], [weights[f"recurrent.{i}.weight_ih"] for i in layers]
        bias = whole.input_bias(config, weights, 0)
        recurrent = [
            self._matrix(
                self._gates(weights[f"recurrent.{i}.weight_hh"]),
                bias=self._filled_gates(_candidate_last(config, whole.candidate_bias(config, weights, i))),
            )
            for i in layers
        ]
        upper = [
            self._matrix(self._gates(inputs[i]), bias=self._filled_gates(whole.input_bias(config, weights, i)))
            for i in layers[1:]
        ]
        head = weights["embedding.weight" if config.tied else "head.weight"]
        narrow = self._precision == "bf16"
        table = self._table(len(embedding), lambda part: _stored(embedding[part] @ inputs[0].T + bias, narrow=narrow))
        return self._assemble(
            table, recurrent, upper, self._matrix(head[None], bias=_filled(weights["head.bias"]), head=True)
        )

    def _whole_model(self, weights: Mapping[str, Array]) -> kernels.Model:
        config = self._config
        model = whole.WholeModel.of(config, weights)
        recurrent = [
            self._product(product, self._filled_gates(_candidate_last(config, bias)))
            for product, bias in zip(model.recurrent, model.candidate_bias, strict=True)
        ]
        upper = [
            self._product(product, self._filled_gates(bias))
            for product, bias in zip(model.inputs, model.input_bias, strict=True)
        ]
        head = self._matrix(
            model.head.weights[None],
            bias=_filled(model.head_bias),
            multipliers=_filled(model.head.multipliers),
            head=True,
        )
        exact = self.units == config.units
        table = model.table if exact else self._table(len(model.table), lambda part: model.table[part])
        assembled = self._assemble(table, recurrent, upper, head)
        assembled.tanh_table = self._address(whole.tanh_table())
        return assembled

    def _product(self, product: whole.Product, bias: Anything) -> kernels.Matrix:
        return self._matrix(
            self._gates(product.weights), bias=bias, multipliers=self._filled_gates(product.multipliers)
        )

    def _assemble(
        self, table: Anything, recurrent: list[kernels.Matrix], upper: list[kernels.Matrix], head: kernels.Matrix
    ) -> kernels.Model:
        config = self._config
        layers = (kernels.Matrix * config.layers)(*recurrent)
        inputs = (kernels.Matrix * config.layers)(kernels.Matrix(), *upper)
        self._kept += [table, layers, inputs, head]
        return kernels.Model(
            storage=kernels.STORAGES[self._precision], cell=kernels.CELLS[config.cell], layers=config.layers,
            units=self.units, vocabulary=len(table), table=table.ctypes.data,
            recurrent=ctypes.addressof(layers), inputs=ctypes.addressof(inputs), head=ctypes.addressof(head),
        )  # fmt: skip

    def _table(self, tokens: int, rows: Callable[[slice], Anything]) -> Anything:
        """The first layer's table (V, G * H) with each gate filled up; `rows` makes a part of it."""
        gates, units = GATES[self._config.cell], self._config.units
        table = _aligned_room((tokens, gates, self.units), rows(slice(0, 1)).dtype)
        table[:, :, units:] = 0
        for part in whole.parts(tokens):
            table[part, :, :units] = rows(part).reshape(-1, gates, units)
        return table

    def _matrix(
        self, rows: Anything, *, bias: Anything, multipliers: Anything | None = None, head: bool = False
    ) -> kernels.Matrix:
        """A matrix (G, N, K) as the kernels read it, with what belongs to its rows."""
        matrix = kernels.Matrix(bias=self._address(bias), packed=self._packed(rows, head=head))
        if multipliers is not None:
            sums = rows.sum(axis=-1, dtype=np.int64)  # (G, N)
            corrections = np.pad(-self._layout.offset * sums, [(0, 0), (0, -sums.shape[1] % kernels.UNITS_MULTIPLE)])
            matrix.multipliers = self._address(multipliers)
            matrix.corrections = self._address(corrections.astype(np.int32))
        return matrix

    def _packed(self, rows: Anything, *, head: bool) -> int:
        """The address of a matrix (G, N, K) laid out for the kernels: panel, k, block, gate, lane, four bytes of k."""
        lanes, gates, count = self._layout.lanes, rows.shape[0], rows.shape[1]
        panel = lanes * (self._layout.head_panel if head else self._layout.layer_panel // gates)  # rows of a gate
        filled = count + -count % kernels.UNITS_MULTIPLE
        fours = self.units // (4 // self._bytes)  # what a lane takes at once, in a row
        room = _aligned_room((gates * filled * fours,), np.dtype(np.uint32))
        for first in range(0, filled, panel):
            size = min(panel, filled - first)
            part = np.zeros((gates, size, self.units), dtype=rows.dtype)
            some = rows[:, first : first + size]
            part[:, : some.shape[1], : some.shape[2]] = some
            blocks = self._stored_rows(part).view(np.uint32).reshape(gates, size // lanes, lanes, fours)
            goal = room[gates * first * fours : gates * (first + size) * fours]
            goal.reshape(fours, size // lanes, gates, lanes)[...] = blocks.transpose(3, 1, 0, 2)
        self._kept.append(room)
        return int(room.ctypes.data)

    @property
    def _bytes(self) -> int:
        """How many bytes a weight has."""
        return {"f32": 4, "bf16": 2, "q8": 1}[self._precision]

    def _stored_rows(self, part: Anything) -> Anything:
        if self._precision == "q8" and self._layout.swapped:
            fours = part.reshape(*part.shape[:2], -1, 4)
            return np.ascontiguousarray(fours[..., [0, 2, 1, 3]]).reshape(part.shape)
        return _stored(part, narrow=self._precision == "bf16")

    def _gates(self, rows: Anything) -> Anything:
        """A matrix (G * H, K) as (G, H, K)."""
        return rows.reshape(GATES[self._config.cell], self._config.units, -1)

    def _filled_gates(self, values: Anything) -> Anything:
        """Numbers (G * H) with each gate filled up to the units of the kernels."""
        gates = values.reshape(GATES[self._config.cell], self._config.units)
        return np.pad(gates, [(0, 0), (0, self.units - self._config.units)])

    def _address(self, array: Anything) -> int:
        """The address of an array's numbers, in order and on a cache line; the array is kept."""
        copy = _aligned_room(array.shape, array.dtype)
        copy[...] = array
        self._kept.append(copy)
        return int(copy.ctypes.data)


def _text(stream: Stream) -> kernels.Text:
    return kernels.Text(
        state=stream.state.ctypes.data,
        ids=stream.ids.ctypes.data,
        length=stream.length,
        at=stream.at,
        scores=None if stream.scores is None else stream.scores.ctypes.data,
        logits=None if stream.logits is None else stream.logits.ctypes.data,
        drawing=stream.drawing,
        sampler=native_sampler(stream.sampler, stream.drawn),
    )


def native_sampler(sampler: Sampler, drawn: int) -> kernels.Sampler:
    """A sampler as the kernels read it; it points at the mask, which must stay."""
    return kernels.Sampler(
        temperature=sampler.temperature,
        top_p=1.0 if sampler.top_p is None else sampler.top_p,
        min_p=sampler.min_p or 0.0,
        penalty=math.log(sampler.repetition_penalty),
        top_k=sampler.top_k or 0,
        penalty_from=PENALTY_FROM,
        penalty_window=PENALTY_WINDOW,
        masked=None if sampler.masked is None else sampler.masked.ctypes.data,
        seed=sampler.seed,
        stream=sampler.stream,
        drawn=drawn,
    )


def _candidate_last(config: ModelConfig, bias: Anything) -> Anything:
    """The candidate's bias (H) where a layer's biases (G * H) have it: behind zeros."""
    return np.concatenate([np.zeros((GATES[config.cell] - 1) * config.units, dtype=bias.dtype), bias])


def _filled(values: Anything) -> Anything:
    return np.pad(values, [(0, -len(values) % kernels.UNITS_MULTIPLE)])


def _stored(values: Anything, *, narrow: bool) -> Anything:
    """Numbers as the kernels store them: bfloat16 as its bits, all else as it is."""
    return bf16_bits(values) if narrow else values


def _aligned_room(shape: tuple[int, ...], kind: np.dtype[Any]) -> Anything:
    size = math.prod(shape) * kind.itemsize
    room = np.empty(size + 64, dtype=np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size].view(kind).reshape(shape)


class _Threads:
    """How many threads to use: what was quickest of late.

    Two cores are nearly twice as fast as one as long as both are free; when another program takes half of one, threads
    that meet every few microseconds are slower than a single one. A stream's text does not depend on it, so the engine
    may try, and look again every second.
    """

    AGAIN_S = 1.0
    WORTH_TIMING_S = 2e-4

    def __init__(self, most: int) -> None:
        self._choices: list[int] = sorted({min(most, 1 << i) for i in range(most.bit_length() + 1)})
        self._step_s: dict[tuple[int, int], list[float]] = {}  # the last two, by streams' magnitude and threads
        self._looked: dict[int, float] = {}

    def timed(self, streams: int, steps: int) -> _Timing:
        """A context that names how many threads to use for so many steps, and learns from how long they take."""
        return _Timing(self, streams.bit_length(), steps, self._choose(streams.bit_length()))

    def _choose(self, size: int) -> int:
        """One that is not known yet, as long as more threads were quicker than fewer; then the quickest."""
        now = time.perf_counter()
        if now - self._looked.get(size, -math.inf) > self.AGAIN_S:
            self._looked[size] = now
            for choice in self._choices:
                self._step_s.pop((size, choice), None)
        best, best_s = self._choices[0], math.inf
        for choice in self._choices:
            seen = self._step_s.get((size, choice), [])
            if len(seen) < 2:  # The first time, a thread may have to be made, and find a core of its own.
                return choice
            if min(seen) > best_s:
                break
            best, best_s = choice, min(seen)
        return best

    def learn(self, size: int, threads: int, steps: int, seconds: float) -> None:
        """Remember how long a step took."""
        if seconds > self.WORTH_TIMING_S or steps > 8:
            seen = self._step_s.get((size, threads), [])
            self._step_s[size, threads] = [*seen[-1:], seconds / steps]


class _Timing:
    def __init__(self, threads: _Threads, size: int, steps: int, count: int) -> None:
        self._threads, self._size, self._steps, self._count = threads, size, steps, count

    def __enter__(self) -> int:
        self._began = time.perf_counter()
        return self._count

    def __exit__(self, *_: object) -> None:
        self._threads.learn(self._size, self._count, self._steps, time.perf_counter() - self._began)
