"""Weights for tests: nonlinear ramps. Constants could not detect swapped gates or units; these values all differ."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from charwright.config import ModelConfig
from charwright.model.language_model import LanguageModel


def ramp(*shape: int, scale: float = 0.5, phase: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A chirp: its frequency grows, so that no row, column or gate repeats another."""
    count = int(torch.Size(shape).numel())
    i = torch.arange(count, dtype=torch.float64)
    return (scale * torch.sin(phase + 0.7 * i + 0.0137 * i**1.5)).reshape(shape).to(dtype)


def fill_with_ramps(model: LanguageModel, scale: float = 0.35) -> LanguageModel:
    """Fill every weight of the model with its own ramp."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            width = weight.shape[-1] if weight.ndim > 1 else 4
            weight.copy_(ramp(*weight.shape, scale=2 * scale / width**0.5, phase=1.0 + number))
    return model


def some_ids(steps: int, batch: int, vocabulary: int) -> Tensor:
    """Ids (T, B) spread evenly over the vocabulary, out of order: multiples of the golden ratio modulo 1, times V."""
    around = torch.arange(steps * batch, dtype=torch.float64) * 0.6180339887498949
    return ((around % 1) * vocabulary).long().reshape(steps, batch)


def ramp_arrays(config: ModelConfig, vocabulary: int, scale: float = 1.5) -> dict[str, np.ndarray]:
    """Every weight of a model as an array, between -scale / sqrt(K) and scale / sqrt(K) for rows of K values.

    The ramp is a square modulo a prime: integers and one division, so that all machines have the same bits.
    """
    arrays = {}
    for number, (name, shape) in enumerate(config.weight_shapes(vocabulary).items()):
        i = np.arange(int(np.prod(shape)), dtype=np.int64)
        circle = (3 * i * i + 12345 * i + 777 * number + 99) % 65521 / 32760.5 - 1
        width = shape[-1] if len(shape) > 1 else 25
        arrays[name] = (circle * (scale / math.sqrt(width))).astype(np.float32).reshape(shape)
    return arrays
