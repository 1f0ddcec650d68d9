"""The engine's arithmetic with numpy alone: for machines without the C kernels, and to hold those to.

B is the number of streams, V the vocabulary, H the units, G the gates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from charwright import kernels
from charwright.config import ModelConfig
from charwright.generation import quantized as whole

if TYPE_CHECKING:
    from charwright.generation.engine import Stream

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

# Floating point sums depend on the shape of the product that makes them. Streams are stepped in blocks of this many,
# the last one filled up, so that a stream's numbers are the same whoever its neighbours are.
BLOCK = 8


def padded(units: int) -> int:
    """Units as a state has them: filled up to a multiple of 16."""
    return -(-units // kernels.UNITS_MULTIPLE) * kernels.UNITS_MULTIPLE


class _Stepwise(ABC):
    """Steps one after another: reads an id for each stream, then draws where nothing is left to read."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.units = padded(config.units)

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Take `steps` steps with all streams; each has as many ids to read, or draws."""
        state = np.stack([stream.state for stream in streams])  # (B, L, S, H)
        before = [(stream.length, stream.at, stream.drawn) for stream in streams]
        try:
            for _ in range(steps):
                ids = np.array([stream.ids[stream.at] for stream in streams], dtype=np.int64)
                logits = self.step(ids, state)
                for stream, row in zip(streams, logits, strict=True):
                    _read_on(stream, row)
        except BaseException:  # Ctrl-C, say: then none of it has happened, and it may be done again.
            for stream, place in zip(streams, before, strict=True):
                stream.length, stream.at, stream.drawn = place
            raise
        for stream, after in zip(streams, state, strict=True):
            stream.state[...] = after

    @abstractmethod
    def step(self, ids: npt.NDArray[np.int64], state: npt.NDArray[Any]) -> Floats:
        """Logits (B, V) after ids (B,); `state` (B, L, S, H) is changed in place."""


def _read_on(stream: Stream, logits: Floats) -> None:
    """Go on to the stream's next id, which is drawn where none is left to read."""
    if stream.drawing and stream.at + 1 == stream.length:
        stream.ids[stream.length] = stream.sampler.draw(logits, stream.ids[: stream.length], stream.drawn)
        stream.drawn += 1
        stream.length += 1
    stream.at += 1
    if stream.scores is not None and stream.at < stream.length:
        highest = logits.max()
        total = float(np.exp(logits - highest).sum())
        stream.scores[stream.at] = logits[stream.ids[stream.at]] - highest - np.log(total)
    if stream.logits is not None:
        stream.logits[:] = logits


class PlainBackend(_Stepwise):
    """In float32, or with weights and activations rounded to bfloat16."""

    state_type: type[np.float32] | type[np.int32] = np.float32

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], *, narrow: bool) -> None:
        """Lay out the weights by the names of `ModelConfig.weight_shapes`."""
        super().__init__(config)
        self._kept = to_bf16_and_back if narrow else _as_it_is
        layers = range(config.layers)
        inputs = [weights[f"recurrent.{layer}.weight_ih"] for layer in layers]
        table = weights["embedding.weight"] @ inputs[0].T + whole.input_bias(config, weights, 0)
        self._table = self._kept(table)  # (V, G * H)
        self._recurrent = [self._kept(weights[f"recurrent.{layer}.weight_hh"]).T.copy() for layer in layers]
        self._candidate = [whole.candidate_bias(config, weights, layer) for layer in layers]
        self._inputs = [self._kept(matrix).T.copy() for matrix in inputs[1:]]
        self._input_bias = [whole.input_bias(config, weights, layer) for layer in layers[1:]]
        head = weights["embedding.weight" if config.tied else "head.weight"]
        self._head, self._head_bias = self._kept(head).T.copy(), weights["head.bias"]

    def step(self, ids: npt.NDArray[np.int64], state: npt.NDArray[Any]) -> Floats:
        """Logits (B, V) after ids (B,); `state` (B, L, S, H) is changed in place."""
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

    def _step_block(self, ids: npt.NDArray[np.int64], state: Array) -> Array:
        used = state[..., : self.config.units]  # a view: what fills the units up stays zero
        gates = self._table[ids]
        for layer in range(self.config.layers):
            if layer > 0:
                gates = self._kept(used[:, layer - 1, 0]) @ self._inputs[layer - 1] + self._input_bias[layer - 1]
            product = self._kept(used[:, layer, 0]) @ self._recurrent[layer]
            if self.config.cell == "gru":
                _gru(gates, product, self._candidate[layer], used[:, layer])
            elif self.config.cell == "lstm":
                _lstm(gates + product, used[:, layer])
            else:
                used[:, layer, 0] = np.tanh(gates + product)
        return np.asarray(self._kept(used[:, -1, 0]) @ self._head + self._head_bias, dtype=np.float32)


class PlainWholeBackend(_Stepwise):
    """In whole numbers, as `quantized` defines them."""

    state_type: type[np.float32] | type[np.int32] = np.int32

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        """Round the weights, by the names of `ModelConfig.weight_shapes`."""
        super().__init__(config)
        model = whole.WholeModel.of(config, weights)
        self._model = model
        self._recurrent = [_Multiplied(product) for product in model.recurrent]
        self._inputs = [_Multiplied(product) for product in model.inputs]
        self._head = _Multiplied(model.head)

    def step(self, ids: npt.NDArray[np.int64], state: npt.NDArray[Any]) -> Floats:
        """Logits (B, V) after ids (B,); `state` (B, L, S, H) is changed in place."""
        model, cell = self._model, self.config.cell
        used = state[..., : self.config.units]
        gates = model.table[ids].astype(np.int32)
        for layer in range(self.config.layers):
            if layer > 0:
                below = self._inputs[layer - 1](used[:, layer - 1, 0])
                gates = whole.clip_pre(below + model.input_bias[layer - 1])
            products = self._recurrent[layer](used[:, layer, 0])
            if cell == "gru":
                used[:, layer, 0] = whole.gru(gates, products, model.candidate_bias[layer], used[:, layer, 0])
            elif cell == "lstm":
                used[:, layer, 0], used[:, layer, 1] = whole.lstm(gates, products, used[:, layer, 1])
            else:
                used[:, layer, 0] = whole.tanh(whole.clip_pre(gates + products))
        logits: Floats = (self._head(used[:, -1, 0]) + model.head_bias) / 2.0**whole.LOGIT_BITS
        return logits


class _Multiplied:
    """A product with its weights as floats, so that a fast library multiplies them; the sums are whole all the same."""

    def __init__(self, product: whole.Product) -> None:
        largest = whole.LARGEST**2 * product.weights.shape[1]
        kind = np.float32 if largest < 2**24 else np.float64  # what holds every sum exactly
        self._weights, self._multipliers = product.weights.T.astype(kind), product.multipliers

    def __call__(self, state: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        sums = whole.activation(state).astype(self._weights.dtype) @ self._weights
        return whole.scaled(sums.astype(np.int64), self._multipliers)


def to_bf16_and_back(values: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even."""
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32)


def bf16_bits(values: Array) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16: the upper half of a float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _as_it_is(values: Array) -> Array:
    return values


def _sigmoid(x: Array) -> Array:
    """By way of tanh, which does not overflow."""
    half = np.float32(0.5)
    result: Array = half * (np.tanh(half * x) + np.float32(1))
    return result


def _gru(gates: Array, recurrent: Array, candidate_bias: Array, state: Array) -> None:
    """The equations of `model/cells.py`: gates (B, 3H) from the input, recurrent (B, 3H) from h, state (B, 1, H)."""
    units = state.shape[-1]
    rz = _sigmoid(gates[:, : 2 * units] + recurrent[:, : 2 * units])
    r, z = rz[:, :units], rz[:, units:]
    n = np.tanh(gates[:, 2 * units :] + r * (recurrent[:, 2 * units :] + candidate_bias))
    state[:, 0] = n + z * (state[:, 0] - n)


def _lstm(gates: Array, state: Array) -> None:
    """The equations of `model/cells.py`: gates (B, 4H), state (B, 2, H)."""
    units = state.shape[-1]
    i, f = _sigmoid(gates[:, :units]), _sigmoid(gates[:, units : 2 * units])
    g, o = np.tanh(gates[:, 2 * units : 3 * units]), _sigmoid(gates[:, 3 * units :])
    state[:, 1] = f * state[:, 1] + i * g
    state[:, 0] = o * np.tanh(state[:, 1])
