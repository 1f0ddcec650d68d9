"""The learning-rate schedule: each step's learning rate as a fraction of its peak."""

from __future__ import annotations

import math

from charwright.config import TrainingConfig


def learning_rate_factor(config: TrainingConfig, step: int, warmup: int, fraction: float) -> float:
    """The learning rate of a step as a fraction of its peak.

    It rises linearly over `warmup` steps; with the cosine schedule (Loshchilov & Hutter, 2017) it then falls to 0 as
    `fraction`, the spent part of the budget, approaches 1.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    if config.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
