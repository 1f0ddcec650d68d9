"""The learning-rate schedule: each step's learning rate as a fraction of its peak."""

from __future__ import annotations

import math

from charwright.config import TrainingConfig

HELD = 0.4
"""The share of the budget in which the trapezoid holds the peak."""


def learning_rate_factor(config: TrainingConfig, step: int, warmup: int, fraction: float) -> float:
    """The learning rate of a step as a fraction of its peak.

    It rises linearly over `warmup` steps. `fraction` is the spent part of the budget: as it approaches 1, the cosine
    (Loshchilov & Hutter, 2017) falls to 0 all along, and the trapezoid (Hägele et al., 2024) in a line after 0.4.
    """
    rise, fraction = min(1.0, (step + 1) / (warmup + 1)), min(1.0, fraction)
    if config.schedule == "constant":
        return rise
    if config.schedule == "trapezoid":
        return rise * min(1.0, (1 - fraction) / (1 - HELD))
    return rise * 0.5 * (1 + math.cos(math.pi * fraction))
