"""The network one step at a time, with numpy alone.

The input side of the first layer is a table with a row for each token, made once. B is the number of streams, V the
vocabulary, H the units, L the layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from charwright.config import STATES, ModelConfig

Array = npt.NDArray[np.float32]

# Streams are stepped in blocks of this many, the last one filled up, so that every product has the same shape: a
# stream's numbers are then the same whoever its neighbours are.
BLOCK = 8


class Engine:
    """A model's weights laid out for single steps.

    The state is one array (S, L, B, H) float32, where S is 1 (h) or 2 (h and c).
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        """Take the weights by the names of `ModelConfig.weight_shapes`."""
        self.config = config
        embedding = weights["embedding.weight"]
        self.vocabulary_size = len(embedding)
        first = "recurrent.0."
        self._table = embedding @ weights[first + "weight_ih"].T + weights[first + "bias_ih"]  # (V, G * H)
        self._recurrent = [weights[f"recurrent.{i}.weight_hh"].T.copy() for i in range(config.layers)]
        self._recurrent_bias = [weights.get(f"recurrent.{i}.bias_hh") for i in range(config.layers)]
        self._input = [weights[f"recurrent.{i}.weight_ih"].T.copy() for i in range(1, config.layers)]
        self._input_bias = [weights[f"recurrent.{i}.bias_ih"] for i in range(1, config.layers)]
        self._head = (embedding if config.tied else weights["head.weight"]).T.copy()
        self._head_bias = weights["head.bias"]

    def zero_state(self, streams: int) -> Array:
        """The state before the first character."""
        shape = (STATES[self.config.cell], self.config.layers, streams, self.config.units)
        return np.zeros(shape, dtype=np.float32)

    def step(self, ids: npt.NDArray[np.integer], state: Array) -> Array:
        """Read one id for each stream, ids (B,); logits (B, V) for the next. `state` is changed in place."""
        logits = np.empty((len(ids), self.vocabulary_size), dtype=np.float32)
        for begin in range(0, len(ids), BLOCK):
            count = min(BLOCK, len(ids) - begin)
            block_ids = np.zeros(BLOCK, dtype=np.int64)
            block_ids[:count] = ids[begin : begin + count]
            block_state = np.zeros((*state.shape[:2], BLOCK, state.shape[3]), dtype=np.float32)
            block_state[:, :, :count] = state[:, :, begin : begin + count]
            logits[begin : begin + count] = self._step_block(block_ids, block_state)[:count]
            state[:, :, begin : begin + count] = block_state[:, :, :count]
        return logits

    def _step_block(self, ids: npt.NDArray[np.int64], state: Array) -> Array:
        gates = self._table[ids]
        for layer in range(self.config.layers):
            if layer > 0:
                gates = state[0, layer - 1] @ self._input[layer - 1] + self._input_bias[layer - 1]
            product = state[0, layer] @ self._recurrent[layer]
            if self.config.cell == "gru":
                _gru(gates, product + self._recurrent_bias[layer], state[:, layer])
            elif self.config.cell == "lstm":
                _lstm(gates + product, state[:, layer])
            else:
                state[0, layer] = np.tanh(gates + product)
        return np.asarray(state[0, -1] @ self._head + self._head_bias, dtype=np.float32)


def _sigmoid(x: Array) -> Array:
    """By way of tanh, which does not overflow."""
    half = np.float32(0.5)
    result: Array = half * (np.tanh(half * x) + np.float32(1))
    return result


def _gru(gates: Array, recurrent: Array, state: Array) -> None:
    """The equations of `model/cells.py`: gates (B, 3H) from the input, recurrent (B, 3H) from h, state (1, B, H)."""
    units = state.shape[-1]
    rz = _sigmoid(gates[:, : 2 * units] + recurrent[:, : 2 * units])
    r, z = rz[:, :units], rz[:, units:]
    n = np.tanh(gates[:, 2 * units :] + r * recurrent[:, 2 * units :])
    state[0] = n + z * (state[0] - n)


def _lstm(gates: Array, state: Array) -> None:
    """The equations of `model/cells.py`: gates (B, 4H), state (2, B, H)."""
    units = state.shape[-1]
    i, f = _sigmoid(gates[:, :units]), _sigmoid(gates[:, units : 2 * units])
    g, o = np.tanh(gates[:, 2 * units : 3 * units]), _sigmoid(gates[:, 3 * units :])
    state[1] = f * state[1] + i * g
    state[0] = o * np.tanh(state[1])
