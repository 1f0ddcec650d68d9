"""How strongly a plan keeps a network from memorizing the text: dropout, recurrent dropout and weight decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charwright.config import PRODUCTS, ModelConfig

LOW_LOAD = 8.0
"""The load at which an output is dropped one time in ten."""
LOWEST_HIGH = 0.2
"""Where the load is high, dropout is at least this."""
LEAST = 0.005
"""A lower dropout changes nothing."""


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
        dropout = min(0.1 * load / LOW_LOAD, max(LOWEST_HIGH, dropout))
    dropout = dropout if dropout >= LEAST else 0.0
    return Regularization(min(0.5, dropout), min(0.35, 0.8 * dropout), min(1.2, 0.2 * max(0.5, strain)))
