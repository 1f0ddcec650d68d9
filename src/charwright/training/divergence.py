"""When training has gone wrong: a loss that is no number, or that forgets what was learned."""

from __future__ import annotations

import math

MEMORY = 100  # steps that the smoothed loss looks back on
LOWER = 0.3  # what is left of the learning rate after a fall
MOST_FALLS = 8  # a rate ten thousand times too high has been brought down by then


class Watch:
    """The losses of a run, step by step.

    A loss is compared with two marks: that of guessing among all characters alike, which nothing that learns stays
    above, and the lowest smoothed loss so far, of which half of what was learned must not be lost again.
    """

    def __init__(self, vocabulary_size: int) -> None:
        """Nothing is seen yet of a model of so many characters."""
        self._guessing = math.log(max(2, vocabulary_size))
        self._sum = self._count = 0.0
        self._steps = 0
        self._lowest = self._guessing

    @property
    def smoothed(self) -> float:
        """The mean loss of the last hundred steps or so, in nats."""
        return self._sum / self._count if self._count else self._guessing

    @property
    def healthy(self) -> bool:
        """Whether the loss is about as low as it has been: what is worth going back to."""
        return self.smoothed <= self._lowest + 0.1 * (self._guessing - self._lowest)

    def lost(self, loss: float) -> bool:
        """Take the loss of one step; whether the run is lost."""
        if not math.isfinite(loss):
            return True
        if not self._count:  # A model that goes on with another text may begin far above guessing.
            self._guessing = self._lowest = max(self._guessing, loss)
        keep = 1 - 1 / MEMORY
        self._sum, self._count = keep * self._sum + loss, keep * self._count + 1
        self._steps += 1
        if self._steps < MEMORY:  # A bad beginning is nothing unusual, as long as it has bounds.
            return self._steps >= 10 and self.smoothed > 3 * self._guessing
        forgotten = self.smoothed > self._lowest + max(0.5, 0.5 * (self._guessing - self._lowest))
        self._lowest = min(self._lowest, self.smoothed)
        return forgotten
