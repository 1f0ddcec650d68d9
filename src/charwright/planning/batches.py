"""Larger batches where they cost no time: on a GPU, which trains many rows in the time of a few."""

from __future__ import annotations

import math
from collections.abc import Mapping

from charwright.planning.recipes import DEFAULT

SMALLEST = DEFAULT.sequences.batch
BATCHES = (SMALLEST, 64, 128, 256, 512)
SLOWER = 1.25  # A step may take this many times that of the smallest batch.
STEPS_PER_PASS = 20  # at least: the rows of a batch start at as many places of the text
FASTEST_RATE = math.sqrt(2)


def batch_for(seconds: Mapping[int, float], *, units: int, steps: float, tokens: int, seq_length: int) -> int:
    """The largest batch that costs little time and leaves enough steps, in the budget and in a pass over the text.

    `seconds` are those of a step by batch; `steps` is how many of the smallest batch the budget has for this width.
    """
    smallest_s = seconds.get(SMALLEST, 0.0)
    fits = [
        batch
        for batch in batches_within(tokens, seq_length)
        if batch in seconds
        and seconds[batch] <= SLOWER * smallest_s
        and steps * smallest_s / seconds[batch] >= steps_needed(units)
    ]
    return max(fits, default=SMALLEST)


def batches_within(tokens: int, seq_length: int) -> list[int]:
    """The smallest batch, and those of which the text has enough for a pass; a window has one token more."""
    return [batch for batch in BATCHES if batch == SMALLEST or tokens >= STEPS_PER_PASS * batch * (seq_length + 1)]


def steps_needed(units: int) -> float:
    """The steps that train a layer of this width."""
    return 2800 * (units / 512) ** 2


def rate_factor(batch: int) -> float:
    """How many times higher the learning rate of a batch is: a rule of thumb that no trial has tested."""
    return min(FASTEST_RATE, math.sqrt(batch / SMALLEST))
