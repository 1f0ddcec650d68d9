"""The 8-bit engine, defined in whole numbers: every machine, language and thread count gives the same bits.

What is computed is written down in docs/explanation/q8.md; this is the definition that the kernels are held to. All
sums are of whole numbers that a float64 holds exactly, so that nothing depends on their order.

B is the number of streams, V the vocabulary, H the units, G the gates, K the inputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

PRE_BITS = 11
"""Fraction bits of what goes into a gate: 16-bit numbers from -16 to 16."""
STATE_BITS = 15
"""Fraction bits of a state and of a gate's value."""
LOGIT_BITS = 16
"""Fraction bits of a logit."""
SHIFT = 20
"""Fraction bits of the multipliers that bring a product's sum to the fraction bits of its goal."""
LARGEST = 127
"""Weights and what they are multiplied with go from -127 to 127."""
PRE_LIMIT = 2**15 - 1
STATE_LIMIT = 2**15 - 1
CELL_LIMIT = 2**21 - 1
"""An LSTM's cell state goes from -64 to 64."""
PRODUCT_LIMIT = 2**30 - 1
"""A product at its goal, and a bias: two of them fit into 32 bits."""

TABLE_STEP_BITS = 5
"""tanh's table has an entry for each 1/128: 2^5 numbers of 12 fraction bits."""
TABLE_SIZE = 1024

PART = 128

EXACT_BITS = 20
"""Bits of the numbers whose products make the first layer's table."""


@dataclass(frozen=True)
class Product:
    """A matrix of 8-bit weights: rows (N, K), and what each row's sum is multiplied with."""

    weights: npt.NDArray[np.int8]  # (N, K)
    multipliers: Ints  # (N,)


def quantize(weights: Floats, goal_bits: int) -> Product:
    """A matrix (N, K), a scale for each row, as a product that gives numbers of `goal_bits` fraction bits.

    The multiplier comes first and the weights are rounded to its steps, so that its own rounding costs nothing.
    """
    unit = 2.0 ** (goal_bits + SHIFT) / LARGEST  # one step of an activation is 1 / LARGEST
    whole, multipliers = np.empty(weights.shape, dtype=np.int8), np.empty(len(weights), dtype=np.int32)
    for part in parts(len(weights)):
        rows = weights[part].astype(np.float64)
        wanted = np.abs(rows).max(axis=1, initial=0.0) / LARGEST * unit
        steps = np.clip(np.ceil(wanted), 1, 2**31 - 1)
        whole[part] = np.clip(np.rint(rows / (steps / unit)[:, None]), -LARGEST, LARGEST)
        multipliers[part] = steps
    return Product(whole, multipliers)


def parts(rows: int) -> Iterator[slice]:
    """Rows a few at a time: what is computed in wider numbers on the way would not fit into memory all at once."""
    return (slice(begin, begin + PART) for begin in range(0, rows, PART))


def fixed(values: Floats, bits: int, limit: int) -> Ints:
    """Numbers with `bits` fraction bits."""
    return np.clip(np.rint(values.astype(np.float64) * 2.0**bits), -limit, limit).astype(np.int32)


def input_table(embedding: Floats, weights: Floats, bias: Floats) -> npt.NDArray[np.int16]:
    """What each token gives the first layer's gates: embedding (V, E) times weights (N, E), plus bias; (V, N).

    Both are rounded to 20 bits of their largest number first: then every partial sum is a whole number below 2^53, and
    the table is the same whoever adds in whatever order.
    """
    left, left_unit = _exact(embedding)
    right, right_unit = _exact(weights)
    table = np.empty((len(embedding), len(weights)), dtype=np.int16)
    for part in parts(len(embedding)):
        sums = left[part] @ right.T * (left_unit * right_unit) + bias.astype(np.float64)
        table[part] = np.clip(np.rint(sums * 2.0**PRE_BITS), -PRE_LIMIT, PRE_LIMIT)
    return table


def _exact(values: Floats) -> tuple[npt.NDArray[np.float64], float]:
    """Whole numbers of at most 20 bits, and the power of two that makes them the values again."""
    largest = float(np.abs(values).max(initial=0.0))
    unit = 2.0 ** (math.frexp(largest)[1] - EXACT_BITS) if largest else 1.0
    return np.rint(values.astype(np.float64) / unit), unit


@cache
def tanh_table() -> npt.NDArray[np.int16]:
    """Values of tanh at 0, 1/128 ... 8 with 15 fraction bits, and one entry more for the last interval."""
    points = range(TABLE_SIZE + 2)
    return np.array([min(round(math.tanh(i / 128) * 2**15), STATE_LIMIT) for i in points], dtype=np.int16)


def tanh_at(v: Ints) -> Ints:
    """The tanh of numbers with 12 fraction bits, with 15: a table and straight lines between its entries."""
    table = tanh_table().astype(np.int32)
    size = np.minimum(np.abs(v), (TABLE_SIZE << TABLE_STEP_BITS) - 1)
    index, part = size >> TABLE_STEP_BITS, size & ((1 << TABLE_STEP_BITS) - 1)
    low = table[index]
    value = low + (((table[index + 1] - low) * part + (1 << (TABLE_STEP_BITS - 1))) >> TABLE_STEP_BITS)
    signed: Ints = np.where(v < 0, -value, value).astype(np.int32)
    return signed


def tanh(pre: Ints) -> Ints:
    """The tanh of what goes into a gate."""
    doubled: Ints = pre * np.int32(2)
    return tanh_at(doubled)


def sigmoid(pre: Ints) -> Ints:
    """The logistic function: (1 + tanh(x / 2)) / 2; x / 2 with 12 fraction bits is the number that x is with 11."""
    value: Ints = (np.int32(2**STATE_BITS) + tanh_at(pre)) >> 1
    return value


def activation(state: Ints) -> Ints:
    """A state as the products take it: -127 to 127."""
    value: Ints = (state * LARGEST + (1 << (STATE_BITS - 1))) >> STATE_BITS
    return value


def rounded_shift(product: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """A product over 2^bits to the nearest whole number, halves upwards."""
    return (product + (1 << (bits - 1))) >> bits


def clip_pre(values: npt.NDArray[np.int64]) -> Ints:
    """What goes into a gate, kept within its 16 bits."""
    return np.clip(values, -PRE_LIMIT, PRE_LIMIT).astype(np.int32)


def gru(inputs: Ints, products: npt.NDArray[np.int64], bias: Ints, h: Ints) -> Ints:
    """The new h (B, H) from inputs and products (B, 3H), the candidate's recurrent bias (H) and h (B, H)."""
    units = h.shape[-1]
    r = sigmoid(clip_pre(inputs[:, :units] + products[:, :units]))
    z = sigmoid(clip_pre(inputs[:, units : 2 * units] + products[:, units : 2 * units]))
    u = clip_pre(products[:, 2 * units :] + bias).astype(np.int64)
    n = tanh(clip_pre(inputs[:, 2 * units :] + rounded_shift(r * u, STATE_BITS))).astype(np.int64)
    return (n + rounded_shift(z * (h - n), STATE_BITS)).astype(np.int32)


def lstm(inputs: Ints, products: npt.NDArray[np.int64], c: Ints) -> tuple[Ints, Ints]:
    """The new h and c (B, H) from inputs (B, 4H), recurrent products (B, 4H) and c (B, H)."""
    units = c.shape[-1]
    pre = clip_pre(inputs + products)
    i, f = sigmoid(pre[:, :units]).astype(np.int64), sigmoid(pre[:, units : 2 * units]).astype(np.int64)
    g, o = tanh(pre[:, 2 * units : 3 * units]), sigmoid(pre[:, 3 * units :]).astype(np.int64)
    cell = np.clip(rounded_shift(f * c + i * g, STATE_BITS), -CELL_LIMIT, CELL_LIMIT).astype(np.int32)
    h = rounded_shift(o * tanh_at(rounded_shift(cell.astype(np.int64), 3).astype(np.int32)), STATE_BITS)
    return h.astype(np.int32), cell


def product(weights: Product, activations: Ints) -> npt.NDArray[np.int64]:
    """Activations (B, K) times the weights: (B, N), brought to the product's goal.

    The sums are whole numbers, and float64 holds them exactly in whatever order they are made.
    """
    sums = (activations.astype(np.float64) @ weights.weights.T.astype(np.float64)).astype(np.int64)
    return scaled(sums, weights.multipliers)


def scaled(sums: npt.NDArray[np.int64], multipliers: Ints) -> npt.NDArray[np.int64]:
    """A product's sums (B, N), each row brought to the product's goal."""
    return np.clip(rounded_shift(sums * multipliers, SHIFT), -PRODUCT_LIMIT, PRODUCT_LIMIT)


@dataclass(frozen=True)
class WholeModel:
    """A model in whole numbers: what `q8` runs.

    A GRU's recurrent biases of r and z are in the input's biases; the candidate's stands inside the product with r and
    is on its own.
    """

    config: ModelConfig
    table: npt.NDArray[np.int16]  # (V, G * H)
    recurrent: list[Product]  # for each layer (G * H, H)
    candidate_bias: list[Ints]  # for each layer (H); zeros but for a GRU
    inputs: list[Product]  # for each layer after the first (G * H, H)
    input_bias: list[Ints]  # for each layer after the first (G * H)
    head: Product  # (V, H)
    head_bias: Ints  # (V)

    @classmethod
    def of(cls, config: ModelConfig, weights: Mapping[str, Floats]) -> WholeModel:
        """Round a model's weights, by the names of `ModelConfig.weight_shapes`."""
        layers = range(config.layers)
        upper = layers[1:]
        candidates = [candidate_bias(config, weights, layer) for layer in layers]
        return cls(
            config,
            input_table(weights["embedding.weight"], weights["recurrent.0.weight_ih"], input_bias(config, weights, 0)),
            [quantize(weights[f"recurrent.{layer}.weight_hh"], PRE_BITS) for layer in layers],
            [fixed(bias, PRE_BITS, PRODUCT_LIMIT) for bias in candidates],
            [quantize(weights[f"recurrent.{layer}.weight_ih"], PRE_BITS) for layer in upper],
            [fixed(input_bias(config, weights, layer), PRE_BITS, PRODUCT_LIMIT) for layer in upper],
            quantize(weights["embedding.weight" if config.tied else "head.weight"], LOGIT_BITS),
            fixed(weights["head.bias"], LOGIT_BITS, PRODUCT_LIMIT),
        )


def input_bias(config: ModelConfig, weights: Mapping[str, Floats], layer: int) -> Floats:
    """What a layer's input is given besides its product (G * H): for a GRU with the recurrent biases of r and z."""
    bias = weights[f"recurrent.{layer}.bias_ih"]
    if config.cell == "gru":
        bias = bias.copy()
        bias[: 2 * config.units] += weights[f"recurrent.{layer}.bias_hh"][: 2 * config.units]
    return bias


def candidate_bias(config: ModelConfig, weights: Mapping[str, Floats], layer: int) -> Floats:
    """The bias (H) inside the product with r of a GRU; zeros elsewhere."""
    if config.cell == "gru":
        return weights[f"recurrent.{layer}.bias_hh"][2 * config.units :]
    return np.zeros(config.units, dtype=np.float32)
