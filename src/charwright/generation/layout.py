"""How the backends lay out a model: padded units, bfloat16, and which bias is added where.

H is the number of units, G the number of gates, P that of the gates that read the state too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from charwright import kernels
from charwright.config import GRUS, ModelConfig

Float32s = npt.NDArray[np.float32]

BLOCK_ROWS = 128
BLOCK_NUMBERS = 1 << 18


def padded(units: int) -> int:
    """The units of a state: padded to a multiple of 16."""
    return -(-units // kernels.UNITS_MULTIPLE) * kernels.UNITS_MULTIPLE


def row_blocks(rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Slices of a few rows each: intermediate results are wider than weights, and would not all fit into memory."""
    return (slice(begin, begin + size) for begin in range(0, rows, size))


def input_bias(config: ModelConfig, weights: Mapping[str, Float32s], layer: int) -> Float32s:
    """The bias (G * H) of a layer's input product; for a GRU it includes the recurrent biases of all gates but n."""
    bias = weights[f"recurrent.{layer}.bias_ih"]
    if config.cell in GRUS:
        others = weights[f"recurrent.{layer}.bias_hh"][: -config.units]  # of r and z, or of z alone
        bias = bias.copy()
        bias[2 * config.units - len(others) : 2 * config.units] += others
    return bias


def candidate_bias(config: ModelConfig, weights: Mapping[str, Float32s], layer: int) -> Float32s:
    """The recurrent bias (H) of a GRU's candidate, which r multiplies; zeros for other cells."""
    if config.cell in GRUS:
        return weights[f"recurrent.{layer}.bias_hh"][-config.units :]
    return np.zeros(config.units, dtype=np.float32)


def state_scale(config: ModelConfig, weights: Mapping[str, Float32s]) -> Float32s | None:
    """What multiplies the state in the first layer's recurrent product, for each token (V, H); None if nothing does."""
    if not config.multiplicative:
        return None
    turned: Float32s = np.tanh(weights["embedding.weight"] @ weights["recurrent.0.weight_mx"].T)
    return np.float32(1) + turned


def as_gru(config: ModelConfig, weights: Mapping[str, Float32s]) -> tuple[ModelConfig, Mapping[str, Float32s]]:
    """The model as one of GRUs, if it is one of input-reset GRUs: those weights from the state to r are zeros."""
    if config.cell != "igru":
        return config, weights
    whole = dict(weights)
    for layer in range(config.layers):
        for name in (f"recurrent.{layer}.weight_hh", f"recurrent.{layer}.bias_hh"):
            whole[name] = np.concatenate([np.zeros_like(weights[name][: config.units]), weights[name]])
    return dataclasses.replace(config, cell="gru"), whole


def bf16_bits(values: Float32s) -> npt.NDArray[np.uint16]:
    """float32 rounded to the nearest bfloat16, ties to even: its bits, the upper half of a float32. NaN stays NaN."""
    exact = np.ascontiguousarray(values, dtype=np.float32)
    bits = exact.view(np.uint32)
    rounded = np.where(np.isnan(exact), bits | 0x400000, bits + 0x7FFF + ((bits >> 16) & 1))
    return (rounded >> 16).astype(np.uint16)


def to_bf16_and_back(values: Float32s) -> Float32s:
    """float32 rounded to bfloat16 precision."""
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32)
