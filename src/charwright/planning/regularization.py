"""How strongly a plan keeps a network from memorizing the text: dropout, recurrent dropout and weight decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charwright.config import PRODUCTS, ModelConfig

LOAD_OF_A_TENTH = 8.0
"""The load at which an output is dropped one time in ten."""
LEAST_AT_HIGH_LOAD = 0.2
"""Where the load is high, a plan has at least this dropout."""
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
        dropout = min(0.1 * load / LOAD_OF_A_TENTH, max(LEAST_AT_HIGH_LOAD, dropout))
    dropout = dropout if dropout >= LEAST else 0.0
    return Regularization(min(0.5, dropout), min(0.35, 0.8 * dropout), min(1.2, 0.2 * max(0.5, strain)))


def why_dropout(model: ModelConfig, rates: Regularization, read: str) -> str:
    """The reason for the dropout of a plan; `read` is how often the text is read, in words."""
    if not model.ngram_bits:
        return f"{read}; dropout prevents memorization"
    if not rates.dropout:
        return f"{model.units} units are too few to memorize the text"
    return f"{read} by {model.units} units; dropout prevents memorization"
