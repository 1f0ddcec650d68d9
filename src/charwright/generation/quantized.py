"""The int8 engine, defined in integers: every machine, language and number of threads gives the same bits.

docs/explanation/q8.md specifies the arithmetic; this module is the reference that the kernels are tested against. All
sums are of integers that a float64 represents exactly, so that no result depends on their order.

B is the number of streams, V the vocabulary size, H the number of units, G the number of gates, P that of gates
that read the state too, K the number of inputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig
from charwright.generation.layout import BLOCK_NUMBERS, candidate_bias, input_bias, row_blocks

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

PRE_BITS = 11
"""Fraction bits of a gate's pre-activation: 16-bit numbers from -16 to 16."""
STATE_BITS = 15
"""Fraction bits of a state and of a gate."""
LOGIT_BITS = 16
"""Fraction bits of a logit."""
VOTE_BITS = 11
"""Fraction bits of the n-grams' numbers, which have 16 bits: from -16 to 16."""
VOTE_LIMIT = 2**15 - 1
SHIFT = 20
"""Fraction bits of the multipliers that requantize a product's sums."""
LARGEST = 127
"""Weights and activations are integers from -127 to 127."""
PRE_LIMIT = 2**15 - 1
STATE_LIMIT = 2**15 - 1
CELL_LIMIT = 2**21 - 1
"""An LSTM's cell state is a number from -64 to 64."""
PRODUCT_LIMIT = 2**30 - 1
"""The limit of a requantized product and of a bias: two of them fit into 32 bits."""

TABLE_STEP_BITS = 5
"""The table of tanh has an entry per 1/128: 2^5 numbers of 12 fraction bits."""
TABLE_SIZE = 1024

EXACT_BITS = 20
"""Bits of the numbers whose products are the first layer's table."""


@dataclass(frozen=True)
class Product:
    """A matrix (N, K) of int8 weights, and the multiplier of each row's sum."""

    weights: npt.NDArray[np.int8]  # (N, K)
    multipliers: Int32s  # (N,)


def quantize(weights: Float32s, goal_bits: int) -> Product:
    """Quantize a matrix (N, K) with a scale per row.

    Its product has `goal_bits` fraction bits. The multiplier is chosen first and the weights are rounded to its steps,
    so that its own rounding costs nothing.
    """
    unit = 2.0 ** (goal_bits + SHIFT) / LARGEST  # one step of an activation is 1 / LARGEST
    rounded, multipliers = np.empty(weights.shape, dtype=np.int8), np.empty(len(weights), dtype=np.int32)
    for part in row_blocks(len(weights)):
        rows = weights[part].astype(np.float64)
        wanted = np.abs(rows).max(axis=1, initial=0.0) / LARGEST * unit
        steps = np.clip(np.ceil(wanted), 1, 2**31 - 1)
        rounded[part] = np.clip(np.rint(rows / (steps / unit)[:, None]), -LARGEST, LARGEST)
        multipliers[part] = steps
    return Product(rounded, multipliers)


def fixed(values: Float32s, bits: int, limit: int) -> Int32s:
    """Round values to `bits` fraction bits."""
    return np.clip(np.rint(values.astype(np.float64) * 2.0**bits), -limit, limit).astype(np.int32)


def votes(values: Float32s) -> npt.NDArray[np.int16]:
    """The array of the n-grams, rounded to 16-bit numbers."""
    rounded = np.empty(len(values), dtype=np.int16)
    for part in row_blocks(len(values), BLOCK_NUMBERS):
        rounded[part] = fixed(values[part], VOTE_BITS, VOTE_LIMIT)
    return rounded


def input_table(embedding: Float32s, weights: Float32s, bias: Float32s) -> npt.NDArray[np.int16]:
    """The first layer's input product for each token (V, N): embedding (V, E) times weights (N, E), plus bias.

    Both factors are first rounded to 20 bits of their largest number: then every partial sum is an integer below 2^53,
    and the table does not depend on the order of the additions.
    """
    left, left_unit = _exact(embedding)
    right, right_unit = _exact(weights)
    table = np.empty((len(embedding), len(weights)), dtype=np.int16)
    for part in row_blocks(len(embedding)):
        numbers = (left[part] @ right.T * (left_unit * right_unit) + bias.astype(np.float64)) * 2.0**PRE_BITS
        table[part] = np.clip(np.rint(numbers), -PRE_LIMIT, PRE_LIMIT)
    return table


def state_scale(embedding: Float32s, weights: Float32s) -> npt.NDArray[np.int16]:
    """Half the scale of the state for each token (V, H), of embedding (V, E) times weights (H, E): from 0 to 1."""
    pre = input_table(embedding, weights, np.zeros(len(weights), dtype=np.float32))
    for part in row_blocks(len(pre)):
        pre[part] = (np.int32(2**STATE_BITS) + tanh(pre[part].astype(np.int32))) >> 1
    return pre


def _exact(values: Float32s) -> tuple[npt.NDArray[np.float64], float]:
    """The values as integers of at most 20 bits, and the power of two that scales them back."""
    largest = float(np.abs(values).max(initial=0.0))
    unit = 2.0 ** (math.frexp(largest)[1] - EXACT_BITS) if largest else 1.0
    return np.rint(values.astype(np.float64) / unit), unit


@cache
def tanh_table() -> npt.NDArray[np.int16]:
    """The table of tanh: 0, 1/128, ..., 8 with 15 fraction bits, and one more entry for the last interval."""
    points = range(TABLE_SIZE + 2)
    return np.array([min(round(math.tanh(i / 128) * 2**15), STATE_LIMIT) for i in points], dtype=np.int16)


def tanh_at(v: Int32s) -> Int32s:
    """Compute tanh of numbers with 12 fraction bits, with 15 fraction bits: linear interpolation in a table."""
    table = tanh_table().astype(np.int32)
    size = np.minimum(np.abs(v), (TABLE_SIZE << TABLE_STEP_BITS) - 1)
    index, part = size >> TABLE_STEP_BITS, size & ((1 << TABLE_STEP_BITS) - 1)
    low = table[index]
    value = low + (((table[index + 1] - low) * part + (1 << (TABLE_STEP_BITS - 1))) >> TABLE_STEP_BITS)
    signed: Int32s = np.where(v < 0, -value, value).astype(np.int32)
    return signed


def tanh(pre: Int32s) -> Int32s:
    """Compute tanh of a pre-activation."""
    doubled: Int32s = pre * np.int32(2)
    return tanh_at(doubled)


def sigmoid(pre: Int32s) -> Int32s:
    """The logistic function, (1 + tanh(x / 2)) / 2. x / 2 with 12 fraction bits is the same integer as x with 11."""
    value: Int32s = (np.int32(2**STATE_BITS) + tanh_at(pre)) >> 1
    return value


def activation(state: Int32s) -> Int32s:
    """A state rounded to an input of the products: -127 to 127."""
    value: Int32s = (state * LARGEST + (1 << (STATE_BITS - 1))) >> STATE_BITS
    return value


def scaled_state(state: Int32s, scale: npt.NDArray[np.int16]) -> Int32s:
    """A state times half its scale: the product fits into 32 bits."""
    value: Int32s = (state * scale.astype(np.int32) + (1 << (STATE_BITS - 1))) >> STATE_BITS
    return value


def rounded_shift(product: Int64s, bits: int) -> Int64s:
    """Divide by 2^bits and round to the nearest integer, halves up."""
    return (product + (1 << (bits - 1))) >> bits


def clip_pre(values: Int64s) -> Int32s:
    """Clip pre-activations to 16 bits."""
    return np.clip(values, -PRE_LIMIT, PRE_LIMIT).astype(np.int32)


def gru(inputs: Int32s, products: Int64s, bias: Int32s, h: Int32s) -> Int32s:
    """The new h (B, H), from inputs and products (B, 3H), the candidate's recurrent bias (H) and h (B, H).

    An input-reset GRU has products (B, 2H): none of r.
    """
    units = h.shape[-1]
    gates = inputs[:, : 2 * units].astype(np.int64)
    gates[:, 3 * units - products.shape[1] :] += products[:, :-units]
    r, z = sigmoid(clip_pre(gates[:, :units])), sigmoid(clip_pre(gates[:, units:]))
    u = clip_pre(products[:, -units:] + bias).astype(np.int64)
    n = tanh(clip_pre(inputs[:, 2 * units :] + rounded_shift(r * u, STATE_BITS))).astype(np.int64)
    return (n + rounded_shift(z * (h - n), STATE_BITS)).astype(np.int32)


def lstm(inputs: Int32s, products: Int64s, c: Int32s) -> tuple[Int32s, Int32s]:
    """The new h and c (B, H), from inputs (B, 4H), recurrent products (B, 4H) and c (B, H)."""
    units = c.shape[-1]
    pre = clip_pre(inputs + products)
    i, f = sigmoid(pre[:, :units]).astype(np.int64), sigmoid(pre[:, units : 2 * units]).astype(np.int64)
    g, o = tanh(pre[:, 2 * units : 3 * units]), sigmoid(pre[:, 3 * units :]).astype(np.int64)
    cell = np.clip(rounded_shift(f * c + i * g, STATE_BITS), -CELL_LIMIT, CELL_LIMIT).astype(np.int32)
    h = rounded_shift(o * tanh_at(rounded_shift(cell.astype(np.int64), 3).astype(np.int32)), STATE_BITS)
    return h.astype(np.int32), cell


def requantize(sums: Int64s, multipliers: Int32s) -> Int64s:
    """Scale a product's sums (B, N) by their rows' multipliers, to the product's fraction bits."""
    return np.clip(rounded_shift(sums * multipliers, SHIFT), -PRODUCT_LIMIT, PRODUCT_LIMIT)


@dataclass(frozen=True)
class Int8Model:
    """A model in integers, as `q8` runs it.

    The input biases of a GRU include the recurrent biases of its other gates; the candidate's is separate, since r
    multiplies it.
    """

    config: ModelConfig
    table: npt.NDArray[np.int16]  # (V, G * H)
    recurrent: list[Product]  # for each layer (P * H, H)
    candidate_bias: list[Int32s]  # for each layer (H); zeros except for a GRU
    inputs: list[Product]  # for each layer after the first (G * H, H)
    input_bias: list[Int32s]  # for each layer after the first (G * H)
    head: Product  # (V, H)
    head_bias: Int32s  # (V)
    ngrams: npt.NDArray[np.int16] | None = None  # (2^bits + V); None without n-grams
    scale: npt.NDArray[np.int16] | None = None  # (V, H): half of what multiplies the first layer's state; or None

    @classmethod
    def of(cls, config: ModelConfig, weights: Mapping[str, Float32s]) -> Int8Model:
        """Quantize a model's weights, named as in `ModelConfig.weight_shapes`."""
        layers = range(config.layers)
        upper = layers[1:]
        candidates = [candidate_bias(config, weights, layer) for layer in layers]
        embedding = weights["embedding.weight"]
        recurrent = [weights[f"recurrent.{layer}.weight_hh"] for layer in layers]
        scale = None
        if config.multiplicative:
            scale = state_scale(embedding, weights["recurrent.0.weight_mx"])
            recurrent[0] = 2 * recurrent[0]  # The other half of the scale.
        return cls(
            config,
            input_table(embedding, weights["recurrent.0.weight_ih"], input_bias(config, weights, 0)),
            [quantize(matrix, PRE_BITS) for matrix in recurrent],
            [fixed(bias, PRE_BITS, PRODUCT_LIMIT) for bias in candidates],
            [quantize(weights[f"recurrent.{layer}.weight_ih"], PRE_BITS) for layer in upper],
            [fixed(input_bias(config, weights, layer), PRE_BITS, PRODUCT_LIMIT) for layer in upper],
            quantize(embedding if config.tied else weights["head.weight"], LOGIT_BITS),
            fixed(weights["head.bias"], LOGIT_BITS, PRODUCT_LIMIT),
            votes(weights["ngrams.weight"]) if config.ngram_bits else None,
            scale,
        )
