"""Detects divergence: a loss that is not finite, or that loses much of what was learned."""

from __future__ import annotations

import math

from charwright.errors import DivergedError

MEMORY = 100  # steps over which the loss is smoothed


class DivergenceDetector:
    """Watches the losses of a run, step by step.

    The smoothed loss is compared with two references: that of a uniform guess, which any model that learns stays
    below, and the lowest smoothed loss so far. Losing half of the progress from one to the other is divergence.
    """

    def __init__(self, vocabulary_size: int) -> None:
        """Start before the first step of a model with this many tokens."""
        self._guessing = math.log(max(2, vocabulary_size))
        self._sum = self._count = 0.0
        self._steps = 0
        self._lowest = self._guessing

    @property
    def smoothed(self) -> float:
        """The mean loss of about the last hundred steps, in nats."""
        return self._sum / self._count if self._count else self._guessing

    @property
    def healthy(self) -> bool:
        """Whether the loss is close to its lowest, so that the state is worth a rollback."""
        return self.smoothed <= self._lowest + 0.1 * (self._guessing - self._lowest)

    def diverged(self, loss: float) -> bool:
        """Record the loss of one step; whether the run has diverged."""
        if not math.isfinite(loss):
            return True
        if not self._count:  # A model that continues from another text may start far above a uniform guess.
            self._guessing = self._lowest = max(self._guessing, loss)
        keep = 1 - 1 / MEMORY
        self._sum, self._count = keep * self._sum + loss, keep * self._count + 1
        self._steps += 1
        if self._steps < MEMORY:  # The first steps are often rough; only a loss far above guessing counts.
            return self._steps >= 10 and self.smoothed > 3 * self._guessing
        lost = self.smoothed > self._lowest + max(0.5, 0.5 * (self._guessing - self._lowest))
        self._lowest = min(self._lowest, self.smoothed)
        return lost


def diverged_error(step: int, learning_rate: float) -> DivergedError:
    """The error for a run that diverges at every learning rate."""
    return DivergedError(
        f"training diverges near step {step:,} at every learning rate (the last was {learning_rate:.2g}); "
        "earlier checkpoints are intact; try a much smaller --learning-rate"
    )
