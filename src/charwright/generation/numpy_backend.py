"""The engine's arithmetic in NumPy: for machines without the C kernels, and as their reference.

B is the number of streams, V the vocabulary size, H the number of units, G the number of gates, L and S the rows and
arrays of a state, as in `engine.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright import ngrams
from charwright.config import GRUS, ModelConfig
from charwright.generation import quantized
from charwright.generation.layout import candidate_bias, input_bias, padded, state_scale, to_bf16_and_back
from charwright.generation.streams import Stream

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

# Floating-point sums depend on the shape of a matrix product. Streams are stepped in blocks of this size, the last one
# padded, so that a stream's numbers do not depend on the streams beside it.
BLOCK = 8


class _Stepwise(ABC):
    """Run one step after another: read an id of each stream, then sample where none is left to read."""

    def __init__(self, config: ModelConfig, votes: _Votes | None) -> None:
        self.config, self._votes = config, votes
        self.units = padded(config.units)

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Run `steps` steps of all streams. Each has an id to read at every step, or samples it."""
        state = np.stack([stream.state for stream in streams])  # (B, L, S, H)
        before = [(stream.length, stream.at, stream.drawn) for stream in streams]
        try:
            for _ in range(steps):
                ids = np.array([stream.ids[stream.at] for stream in streams], dtype=np.int64)
                logits = self.step(ids, state)
                for stream, row in zip(streams, logits, strict=True):
                    _move_on(stream, row)
        except BaseException:  # Ctrl-C, for example: undo the call, so that it can be repeated.
            for stream, place in zip(streams, before, strict=True):
                stream.length, stream.at, stream.drawn = place
            raise
        for stream, after in zip(streams, state, strict=True):
            stream.state[...] = after

    def step(self, ids: npt.NDArray[np.int64], state: npt.NDArray[Any]) -> Float64s:
        """Return the logits (B, V) after ids (B,). `state` (B, L, S, H) is changed in place."""
        logits = self._network(ids, state[:, : self.config.layers])
        if self._votes is not None:
            before = state[:, -1, 0, : self.config.ngram_order - 1]
            self._votes.add(ids, before, logits)
            before[...] = ngrams.moved_on(ids, before)
        return logits

    @abstractmethod
    def _network(self, ids: npt.NDArray[np.int64], state: npt.NDArray[Any]) -> Float64s:
        """The logits (B, V) without n-grams. `state` (B, layers, S, H) is changed in place."""


class _Votes:
    """The array of the n-grams, of numbers that count `unit` each."""

    def __init__(self, array: npt.NDArray[Any], bits: int, unit: float) -> None:
        self._array, self._bits, self._unit = array, bits, unit

    def add(self, ids: npt.NDArray[np.int64], before: npt.NDArray[Any], logits: Float64s) -> None:
        """Add the votes to logits (B, V) after ids (B,) and the tokens `before` (B, K)."""
        offsets = ngrams.offsets_of(ids, before, self._bits)
        places = offsets[..., None] + np.arange(logits.shape[1])  # (K, B, V)
        logits += self._array[places].sum(axis=0) * self._unit


def _move_on(stream: Stream, logits: Float64s) -> None:
    """Advance to the stream's next id, and sample it if none is left to read."""
    if stream.drawing and stream.at + 1 == stream.length:
        stream.ids[stream.length] = stream.sampler.draw(logits, stream.ids[: stream.length], stream.drawn)
        stream.drawn += 1
        stream.length += 1
    stream.at += 1
    if stream.at < stream.length and (stream.scores is not None or stream.alternatives is not None):
        _score(stream, logits)
    if stream.logits is not None:
        stream.logits[:] = logits


def _score(stream: Stream, logits: Float64s) -> None:
    """The score of the stream's next id and its alternatives, as far as they are wanted."""
    highest = logits.max()
    log_sum = np.log(float(np.exp(logits - highest).sum()))
    if stream.scores is not None:
        stream.scores[stream.at] = logits[stream.ids[stream.at]] - highest - log_sum
    if (others := stream.alternatives) is not None:
        likeliest = np.argsort(-logits, kind="stable")[: others.ids.shape[1]]
        others.ids[stream.at] = likeliest
        others.scores[stream.at] = logits[likeliest] - highest - log_sum


class NumpyBackend(_Stepwise):
    """Arithmetic in float32, with weights and activations rounded to bfloat16 if `narrow`."""

    state_type: type[np.float32] | type[np.int32] = np.float32

    def __init__(self, config: ModelConfig, weights: Mapping[str, Float32s], *, narrow: bool) -> None:
        """Lay out the weights, named as in `ModelConfig.weight_shapes`."""
        votes = _Votes(weights["ngrams.weight"], config.ngram_bits, 1.0) if config.ngram_bits else None
        super().__init__(config, votes)
        self._stored = to_bf16_and_back if narrow else _unchanged
        layers = range(config.layers)
        inputs = [weights[f"recurrent.{layer}.weight_ih"] for layer in layers]
        table = weights["embedding.weight"] @ inputs[0].T + input_bias(config, weights, 0)
        self._table = self._stored(table)  # (V, G * H)
        self._scale = state_scale(config, weights)
        self._recurrent = [self._stored(weights[f"recurrent.{layer}.weight_hh"]).T.copy() for layer in layers]
        self._candidate = [candidate_bias(config, weights, layer) for layer in layers]
        self._inputs = [self._stored(matrix).T.copy() for matrix in inputs[1:]]
        self._input_bias = [input_bias(config, weights, layer) for layer in layers[1:]]
        head = weights["embedding.weight" if config.tied else "head.weight"]
        self._head, self._head_bias = self._stored(head).T.copy(), weights["head.bias"]

    def _network(self, ids: npt.NDArray[np.int64], state: npt.NDArray[Any]) -> Float64s:
        logits = np.empty((len(ids), len(self._head_bias)))
        for begin in range(0, len(ids), BLOCK):
            count = min(BLOCK, len(ids) - begin)
            block_ids = np.zeros(BLOCK, dtype=np.int64)
            block_ids[:count] = ids[begin : begin + count]
            block_state = np.zeros((BLOCK, *state.shape[1:]), dtype=np.float32)
            block_state[:count] = state[begin : begin + count]
            logits[begin : begin + count] = self._step_block(block_ids, block_state)[:count]
            state[begin : begin + count] = block_state[:count]
        return logits

    def _step_block(self, ids: npt.NDArray[np.int64], state: Float32s) -> Float32s:
        used = state[..., : self.config.units]  # a view: the padding stays zero
        gates = self._table[ids]
        for layer in range(self.config.layers):
            if layer > 0:
                gates = self._stored(used[:, layer - 1, 0]) @ self._inputs[layer - 1] + self._input_bias[layer - 1]
            h = used[:, layer, 0]
            scaled = h if layer > 0 or self._scale is None else self._scale[ids] * h
            product = self._stored(scaled) @ self._recurrent[layer]
            if self.config.cell in GRUS:
                _gru(gates, product, self._candidate[layer], used[:, layer])
            elif self.config.cell == "lstm":
                _lstm(gates + product, used[:, layer])
            else:
                used[:, layer, 0] = np.tanh(gates + product)
        return np.asarray(self._stored(used[:, -1, 0]) @ self._head + self._head_bias, dtype=np.float32)


class Int8NumpyBackend(_Stepwise):
    """Integer arithmetic, as `quantized` defines it."""

    state_type: type[np.float32] | type[np.int32] = np.int32

    def __init__(self, config: ModelConfig, weights: Mapping[str, Float32s]) -> None:
        """Quantize the weights, named as in `ModelConfig.weight_shapes`."""
        model = quantized.Int8Model.of(config, weights)
        unit = 2.0**-quantized.VOTE_BITS
        super().__init__(config, None if model.ngrams is None else _Votes(model.ngrams, config.ngram_bits, unit))
        self._model = model
        self._recurrent = [_Multiplied(product) for product in model.recurrent]
        self._inputs = [_Multiplied(product) for product in model.inputs]
        self._head = _Multiplied(model.head)

    def _network(self, ids: npt.NDArray[np.int64], state: npt.NDArray[Any]) -> Float64s:
        model, cell = self._model, self.config.cell
        used = state[..., : self.config.units]
        gates = model.table[ids].astype(np.int32)
        for layer in range(self.config.layers):
            if layer > 0:
                below = self._inputs[layer - 1](used[:, layer - 1, 0])
                gates = quantized.clip_pre(below + model.input_bias[layer - 1])
            h = used[:, layer, 0]
            scaled = h if layer > 0 or model.scale is None else quantized.scaled_state(h, model.scale[ids])
            products = self._recurrent[layer](scaled)
            if cell in GRUS:
                used[:, layer, 0] = quantized.gru(gates, products, model.candidate_bias[layer], used[:, layer, 0])
            elif cell == "lstm":
                used[:, layer, 0], used[:, layer, 1] = quantized.lstm(gates, products, used[:, layer, 1])
            else:
                used[:, layer, 0] = quantized.tanh(quantized.clip_pre(gates + products))
        logits: Float64s = (self._head(used[:, -1, 0]) + model.head_bias) / 2.0**quantized.LOGIT_BITS
        return logits


class _Multiplied:
    """A product with its weights as floats, so that a fast library multiplies them. The sums are exact integers."""

    def __init__(self, product: quantized.Product) -> None:
        largest = quantized.LARGEST**2 * product.weights.shape[1]
        kind = np.float32 if largest < 2**24 else np.float64  # represents every sum exactly
        self._weights, self._multipliers = product.weights.T.astype(kind), product.multipliers

    def __call__(self, state: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        sums = quantized.activation(state).astype(self._weights.dtype) @ self._weights
        return quantized.requantize(sums.astype(np.int64), self._multipliers)


def _unchanged(values: Float32s) -> Float32s:
    return values


def _sigmoid(x: Float32s) -> Float32s:
    """The logistic function, computed with tanh, which does not overflow."""
    half = np.float32(0.5)
    result: Float32s = half * (np.tanh(half * x) + np.float32(1))
    return result


def _gru(gates: Float32s, recurrent: Float32s, candidate_bias: Float32s, state: Float32s) -> None:
    """The equations of `model/cells.py`: gates (B, 3H) from the input, recurrent (B, 3H) from h, state (B, 1, H).

    In an input-reset GRU, recurrent is (B, 2H): nothing for r.
    """
    units = state.shape[-1]
    rz = gates[:, : 2 * units].copy()
    rz[:, 3 * units - recurrent.shape[1] :] += recurrent[:, :-units]
    rz = _sigmoid(rz)
    r, z = rz[:, :units], rz[:, units:]
    n = np.tanh(gates[:, 2 * units :] + r * (recurrent[:, -units:] + candidate_bias))
    state[:, 0] = n + z * (state[:, 0] - n)


def _lstm(gates: Float32s, state: Float32s) -> None:
    """The equations of `model/cells.py`: gates (B, 4H), state (B, 2, H)."""
    units = state.shape[-1]
    i, f = _sigmoid(gates[:, :units]), _sigmoid(gates[:, units : 2 * units])
    g, o = np.tanh(gates[:, 2 * units : 3 * units]), _sigmoid(gates[:, 3 * units :])
    state[:, 1] = f * state[:, 1] + i * g
    state[:, 0] = o * np.tanh(state[:, 1])
