"""How strongly a plan keeps a network from memorizing the text: dropout, recurrent dropout and weight decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charwright.config import PRODUCTS, ModelConfig
from charwright.planning.profile import TextProfile

PER_LOAD = 0.0125
"""The dropout of a low load, for each 1 of it."""
HIGH_LOAD = 16.0
"""Above this load the dropout grows more slowly."""
GROWTH = 0.3
"""The exponent of the load above a high one."""
MOST_BY_LOAD = 0.35
"""No trial of a load had more as its best; only many passes ask for it."""
DECAYING = (90_000, 160_000)
"""Tokens of a text from which weight decay does a part of what dropout does, and from which it does all it can.

A pass over fewer has too few steps for it.
"""
REPETITIVE = (0.35, 0.5)
"""The repetition of a text from which memorizing helps, so that weight decay does less, and from which it does not."""
ENOUGH_DROPOUT = 0.12
ENOUGH_RECURRENT = 0.2
"""With more weight decay, more dropout than these two does not help."""
LONG = 1_000_000
"""Tokens of a text that needs no more weight decay than its passes say: its steps are enough."""
MOST_STRONGER = 2.0
"""The most by which the weight decay of a shorter text is multiplied because it hardly repeats itself."""
PAGES = (7_000, 12_000)
"""Tokens up to which a text is one of a few pages, and from which it is a short one."""
SHORT = (40_000, 120_000)
"""Tokens up to which a text is short, and from which it is not."""
TIMES = (5.0, 3.0, 1.0)
"""What the weight decay of a few pages, a short text and a longer one is multiplied by.

Teachers have that of a longer text: their mean is worse if each of them has more.
"""
MOST = (6.0, 2.5, 1.2)
"""The most that the weight decay is then."""
LEAST = 0.005
"""Less than this is not worth a mask."""


@dataclass(frozen=True)
class Regularization:
    """The rates of a plan, not rounded."""

    dropout: float
    recurrent_dropout: float
    weight_decay: float


def regularization(model: ModelConfig, passes: float, text: TextProfile) -> Regularization:
    """The rates for a model that reads a text `passes` times, with what its teachers write beside it.

    The more passes, the more it memorizes. With n-grams, which learn first what a few examples say, it does so only if
    the network is large for the text as well: the load is the recurrent weights times the passes, for each token. In a
    long text that hardly repeats itself, weight decay prevents it better than dropout does; in a short one it does so
    beside it.
    """
    strain = math.sqrt(passes / 7)
    times, most = (_of_length(text.tokens, values) if text.alone else values[-1] for values in (TIMES, MOST))
    dropout, weight_decay = 0.1 * strain, 0.2 * max(0.5, strain)
    if not model.ngram_bits:
        return _within_bounds(dropout, 0.8 * dropout, min(most, times * weight_decay))
    load = PRODUCTS[model.cell] * model.units**2 * model.layers * passes / max(1, text.read)
    slower = PER_LOAD * HIGH_LOAD * (max(load, HIGH_LOAD) / HIGH_LOAD) ** GROWTH
    dropout = min(PER_LOAD * load, max(min(slower, MOST_BY_LOAD), dropout))
    rates = _within_bounds(dropout, 0.8 * dropout, weight_decay)
    fresh = 1 - _part(text.repetition, *REPETITIVE)
    decaying = _part(text.tokens, *DECAYING) * fresh
    stronger = min(MOST_STRONGER, max(1.0, math.sqrt(LONG / max(1, text.tokens)))) - 1
    stronger *= (fresh if text.alone else decaying) * _part(load, HIGH_LOAD / 2, HIGH_LOAD)
    return _within_bounds(
        rates.dropout - decaying * max(0.0, rates.dropout - ENOUGH_DROPOUT),
        rates.recurrent_dropout - decaying * max(0.0, rates.recurrent_dropout - ENOUGH_RECURRENT),
        min(most, rates.weight_decay * max(times, 1 + stronger)),
    )


def _of_length(tokens: int, values: tuple[float, float, float]) -> float:
    """The value for a text between those of a few pages, of a short text and of a longer one."""
    of_pages, of_short, of_longer = values
    return of_pages + (of_short - of_pages) * _part(tokens, *PAGES) + (of_longer - of_short) * _part(tokens, *SHORT)


def _within_bounds(dropout: float, recurrent_dropout: float, weight_decay: float) -> Regularization:
    """No more than helps anywhere, and no mask that is not worth its time."""
    if dropout < LEAST:
        dropout = recurrent_dropout = 0.0
    return Regularization(min(0.5, dropout), min(0.35, recurrent_dropout), weight_decay)


def _part(value: float, begin: float, end: float) -> float:
    """How far a value is between two others, from 0 to 1."""
    return min(1.0, max(0.0, (value - begin) / (end - begin)))


def why_recurrent_dropout(rates: Regularization) -> str:
    """The reason for the recurrent dropout of a plan."""
    return (
        "a mask of the state prevents memorization too"
        if rates.recurrent_dropout
        else "a small network needs no mask of its state"
    )


def why_dropout(model: ModelConfig, rates: Regularization, read: str) -> str:
    """The reason for the dropout of a plan; `read` is how often the text is read, in words."""
    if not model.ngram_bits:
        return f"{read}; dropout prevents memorization"
    if not rates.dropout:
        return f"{model.units} units are too few to memorize the text"
    return f"{read} by {model.units} units; dropout prevents memorization"
