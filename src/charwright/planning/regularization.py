"""How strongly a plan keeps a network from memorizing the text: dropout, recurrent dropout and weight decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charwright.config import PRODUCTS, ModelConfig

PER_LOAD = 0.0125
"""The dropout of a low load, for each 1 of it."""
HIGH_LOAD = 16.0
"""Above this load the dropout grows more slowly."""
GROWTH = 0.3
"""The exponent of the load above a high one."""
MOST_BY_LOAD = 0.35
"""No trial of a load had more as its best; only many passes ask for it."""
LEAST = 0.005
"""Less than this is not worth a mask."""


@dataclass(frozen=True)
class Regularization:
    """The rates of a plan, not rounded."""

    dropout: float
    recurrent_dropout: float
    weight_decay: float


def regularization(model: ModelConfig, passes: float, tokens: int) -> Regularization:
    """The rates for a model that reads a text of `tokens` `passes` times.

    The more passes, the more it memorizes. With n-grams, which learn first what a few examples say, it does so only if
    the network is large for the text as well: the load is the recurrent weights times the passes, for each token.
    """
    strain = math.sqrt(passes / 7)
    dropout = 0.1 * strain
    if model.ngram_bits:
        load = PRODUCTS[model.cell] * model.units**2 * model.layers * passes / max(1, tokens)
        slower = PER_LOAD * HIGH_LOAD * (max(load, HIGH_LOAD) / HIGH_LOAD) ** GROWTH
        dropout = min(PER_LOAD * load, max(min(slower, MOST_BY_LOAD), dropout))
    dropout = dropout if dropout >= LEAST else 0.0
    return Regularization(min(0.5, dropout), min(0.35, 0.8 * dropout), min(1.2, 0.2 * max(0.5, strain)))


def why_dropout(model: ModelConfig, rates: Regularization, read: str) -> str:
    """The reason for the dropout of a plan; `read` is how often the text is read, in words."""
    if not model.ngram_bits:
        return f"{read}; dropout prevents memorization"
    if not rates.dropout:
        return f"{model.units} units are too few to memorize the text"
    return f"{read} by {model.units} units; dropout prevents memorization"
