"""The engine's arithmetic in the C kernels: lay out the weights once, and pass streams by address."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright import kernels
from charwright.config import GATES, PRODUCTS, ModelConfig
from charwright.generation import quantized
from charwright.generation.layout import bf16_bits, candidate_bias, input_bias, padded, row_blocks, state_scale
from charwright.generation.repetition import PENALTY_FROM, PENALTY_WINDOW
from charwright.generation.sampling import Sampler
from charwright.generation.streams import Stream
from charwright.threads import GENERATION, ThreadChooser

Array = npt.NDArray[Any]
Float32s = npt.NDArray[np.float32]

_ROW = np.dtype(kernels.StreamBuffers)

WORTH_TIMING_S, WORTH_TIMING_STEPS = 2e-4, 8
"""Calls that are both shorter and fewer in steps measure little more than the overhead of the call."""


class NativeBackend:
    """The kernels, with a model's weights in their layout."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Float32s],
        precision: str,
        loaded: kernels.Kernels,
        threads: int,
    ) -> None:
        """Lay out the weights, named as in `ModelConfig.weight_shapes`."""
        self.units = padded(config.units)
        self.state_type: type[np.float32] | type[np.int32] = np.int32 if precision == "q8" else np.float32
        self._config, self._precision, self._kernels = config, precision, loaded
        self._layout = loaded.layout(precision, config.cell)
        self._threads = ThreadChooser(threads, time.perf_counter, GENERATION)
        self._kept: list[Any] = []  # the arrays that the model's addresses point to
        self._model = self._int8_model(weights) if precision == "q8" else self._float_model(weights)

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Run `steps` steps of all streams. Each has an id to read at every step, or samples it."""
        packed = bytearray(b"".join([_fixed_part(stream) for stream in streams]))
        rows = np.frombuffer(packed, dtype=_ROW)
        rows["length"] = [stream.length for stream in streams]
        rows["at"] = [stream.at for stream in streams]
        rows["drawing"] = [stream.drawing for stream in streams]
        rows["sampler"]["drawn"] = [stream.drawn for stream in streams]
        buffers = (kernels.StreamBuffers * len(streams)).from_buffer(packed)
        size = len(streams).bit_length()  # The best number of threads depends on the number of streams.
        threads = self._threads.count(size)
        began = time.perf_counter()
        try:
            self._kernels.write(self._model, threads, buffers, steps)
            seconds = time.perf_counter() - began
            if seconds > WORTH_TIMING_S or steps > WORTH_TIMING_STEPS:
                self._threads.took(threads, seconds / steps, size)
        finally:  # The kernels have finished their steps even if Ctrl-C was pressed in the meantime.
            after = zip(rows["length"].tolist(), rows["at"].tolist(), rows["sampler"]["drawn"].tolist(), strict=True)
            for stream, (length, at, drawn) in zip(streams, after, strict=True):
                stream.length, stream.at, stream.drawn = length, at, drawn

    # Layout. The model holds addresses only, so the arrays are kept. Weights are converted a few rows at a time, so
    # that the peak memory is little more than their final size.

    def _float_model(self, weights: Mapping[str, Float32s]) -> kernels.Model:
        config, layers = self._config, range(self._config.layers)
        embedding, inputs = weights["embedding.weight"], [weights[f"recurrent.{i}.weight_ih"] for i in layers]
        bias = input_bias(config, weights, 0)
        recurrent = [
            self._matrix(
                self._gates(weights[f"recurrent.{i}.weight_hh"]),
                bias=self._padded_gates(_candidate_last(config, candidate_bias(config, weights, i))),
            )
            for i in layers
        ]
        upper = [
            self._matrix(self._gates(inputs[i]), bias=self._padded_gates(input_bias(config, weights, i)))
            for i in layers[1:]
        ]
        head = weights["embedding.weight" if config.tied else "head.weight"]
        narrow = self._precision == "bf16"
        table = self._table(len(embedding), lambda part: _stored(embedding[part] @ inputs[0].T + bias, narrow=narrow))
        return self._assemble(
            table,
            recurrent,
            upper,
            self._matrix(head[None], bias=_padded(weights["head.bias"]), head=True),
            weights["ngrams.weight"] if config.ngram_bits else None,
            state_scale(config, weights),
        )

    def _int8_model(self, weights: Mapping[str, Float32s]) -> kernels.Model:
        config = self._config
        model = quantized.Int8Model.of(config, weights)
        recurrent = [
            self._product(product, self._padded_gates(_candidate_last(config, bias)))
            for product, bias in zip(model.recurrent, model.candidate_bias, strict=True)
        ]
        upper = [
            self._product(product, self._padded_gates(bias))
            for product, bias in zip(model.inputs, model.input_bias, strict=True)
        ]
        head = self._matrix(
            model.head.weights[None],
            bias=_padded(model.head_bias),
            multipliers=_padded(model.head.multipliers),
            head=True,
        )
        exact = self.units == config.units
        table = model.table if exact else self._table(len(model.table), lambda part: model.table[part])
        assembled = self._assemble(table, recurrent, upper, head, model.ngrams, model.scale)
        assembled.tanh_table = self._address(quantized.tanh_table())
        return assembled

    def _product(self, product: quantized.Product, bias: Array) -> kernels.Matrix:
        return self._matrix(
            self._gates(product.weights), bias=bias, multipliers=self._padded_gates(product.multipliers)
        )

    def _assemble(
        self,
        table: Array,
        recurrent: list[kernels.Matrix],
        upper: list[kernels.Matrix],
        head: kernels.Matrix,
        votes: Array | None,
        scale: Array | None,
    ) -> kernels.Model:
        config = self._config
        layers = (kernels.Matrix * config.layers)(*recurrent)
        inputs = (kernels.Matrix * config.layers)(kernels.Matrix(), *upper)
        self._kept += [table, layers, inputs, head]
        return kernels.Model(
            storage=kernels.STORAGES[self._precision], cell=kernels.CELL_CODES[config.cell], layers=config.layers,
            units=self.units, vocabulary=len(table), table=table.ctypes.data,
            recurrent=ctypes.addressof(layers), inputs=ctypes.addressof(inputs), head=ctypes.addressof(head),
            ngrams=None if votes is None else self._address(votes), ngram_bits=config.ngram_bits,
            ngram_order=config.ngram_order,
            scale=None if scale is None else self._address(np.pad(scale, [(0, 0), (0, self.units - config.units)])),
        )  # fmt: skip

    def _table(self, tokens: int, rows: Callable[[slice], Array]) -> Array:
        """The first layer's table (V, G * H) with each gate padded. `rows` computes some of its rows."""
        gates, units = GATES[self._config.cell], self._config.units
        table = _aligned((tokens, gates, self.units), rows(slice(0, 1)).dtype)
        table[:, :, units:] = 0
        for part in row_blocks(tokens):
            table[part, :, :units] = rows(part).reshape(-1, gates, units)
        return table

    def _matrix(
        self, rows: Array, *, bias: Array, multipliers: Array | None = None, head: bool = False
    ) -> kernels.Matrix:
        """A matrix (G, N, K) in the kernels' layout, with its bias and multipliers."""
        matrix = kernels.Matrix(bias=self._address(bias), packed=self._packed(rows, head=head))
        if multipliers is not None:
            sums = rows.sum(axis=-1, dtype=np.int64)  # (G, N)
            corrections = np.pad(-self._layout.offset * sums, [(0, 0), (0, -sums.shape[1] % kernels.UNITS_MULTIPLE)])
            matrix.multipliers = self._address(multipliers)
            matrix.corrections = self._address(corrections.astype(np.int32))
        return matrix

    def _packed(self, rows: Array, *, head: bool) -> int:
        """The address of a packed matrix (G, N, K), ordered by panel, k, block, gate, lane, four bytes of k."""
        lanes, gates, count = self._layout.lanes, rows.shape[0], rows.shape[1]
        panel = lanes * (self._layout.head_panel if head else self._layout.layer_blocks)  # rows per gate
        filled = count + -count % kernels.UNITS_MULTIPLE
        fours = self.units // (4 // self._bytes)  # groups of four bytes in a row
        packed = _aligned((gates * filled * fours,), np.dtype(np.uint32))
        for first in range(0, filled, panel):
            size = min(panel, filled - first)
            part = np.zeros((gates, size, self.units), dtype=rows.dtype)
            some = rows[:, first : first + size]
            part[:, : some.shape[1], : some.shape[2]] = some
            blocks = self._stored_rows(part).view(np.uint32).reshape(gates, size // lanes, lanes, fours)
            goal = packed[gates * first * fours : gates * (first + size) * fours]
            goal.reshape(fours, size // lanes, gates, lanes)[...] = blocks.transpose(3, 1, 0, 2)
        self._kept.append(packed)
        return int(packed.ctypes.data)

    @property
    def _bytes(self) -> int:
        """The size of a weight in bytes."""
        return {"f32": 4, "bf16": 2, "q8": 1}[self._precision]

    def _stored_rows(self, part: Array) -> Array:
        if self._precision == "q8" and self._layout.swapped:
            fours = part.reshape(*part.shape[:2], -1, 4)
            return np.ascontiguousarray(fours[..., [0, 2, 1, 3]]).reshape(part.shape)
        return _stored(part, narrow=self._precision == "bf16")

    def _gates(self, rows: Array) -> Array:
        """Reshape a matrix (G * H, K) to (G, H, K), or one of P gates."""
        return rows.reshape(-1, self._config.units, rows.shape[1])

    def _padded_gates(self, values: Array) -> Array:
        """Pad each gate of values (G * H), or of P gates, to the padded units."""
        gates = values.reshape(-1, self._config.units)
        return np.pad(gates, [(0, 0), (0, self.units - self._config.units)])

    def _address(self, array: Array) -> int:
        """The address of a contiguous copy of an array, aligned to a cache line. The copy is kept."""
        copy = _aligned(array.shape, array.dtype)
        copy[...] = array
        self._kept.append(copy)
        return int(copy.ctypes.data)


def _fixed_part(stream: Stream) -> bytes:
    """A stream in the kernels' form, without the numbers that change with every step.

    It is kept until one of the arrays is replaced: their addresses take longer to look up than a small network's step.
    """
    parts = (stream.state, stream.ids, stream.scores, stream.alternatives, stream.logits, stream.sampler)
    if stream.native is None or not all(map(is_, parts, stream.native[0])):
        stream.native = (parts, bytes(_buffers(stream)))
    fixed: bytes = stream.native[1]
    return fixed


def _buffers(stream: Stream) -> kernels.StreamBuffers:
    others = stream.alternatives
    return kernels.StreamBuffers(
        state=stream.state.ctypes.data,
        ids=stream.ids.ctypes.data,
        scores=None if stream.scores is None else stream.scores.ctypes.data,
        likeliest=None if others is None else others.ids.ctypes.data,
        likeliest_scores=None if others is None else others.scores.ctypes.data,
        likeliest_count=0 if others is None else others.ids.shape[1],
        logits=None if stream.logits is None else stream.logits.ctypes.data,
        sampler=native_sampler(stream.sampler, stream.drawn),
    )


def native_sampler(sampler: Sampler, drawn: int) -> kernels.Sampler:
    """A sampler in the kernels' form. It points to the mask, which must be kept alive."""
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


def _candidate_last(config: ModelConfig, bias: Array) -> Array:
    """A bias (P * H) of zeros with the candidate's bias (H) at the end."""
    return np.concatenate([np.zeros((PRODUCTS[config.cell] - 1) * config.units, dtype=bias.dtype), bias])


def _padded(values: Array) -> Array:
    return np.pad(values, [(0, -len(values) % kernels.UNITS_MULTIPLE)])


def _stored(values: Array, *, narrow: bool) -> Array:
    """Values as the kernels store them: the bits of bfloat16 if `narrow`, otherwise unchanged."""
    return bf16_bits(values) if narrow else values


def _aligned(shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    size = math.prod(shape) * kind.itemsize
    memory = np.empty(size + 64, dtype=np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size].view(kind).reshape(shape)
