"""Rollback after divergence: back to the last good state, with a lower learning rate."""

from __future__ import annotations

from charwright.errors import DivergedError
from charwright.training.capture import restore, take_snapshot
from charwright.training.events import Rollback
from charwright.training.state import TrainingState

KEEP_EVERY = 250  # steps between good states kept in memory
LOWER = 0.3  # the factor on the learning rate at each rollback
MOST_ROLLBACKS = 8  # enough for a learning rate ten thousand times too high


class LastGoodState:
    """A copy of the last state whose loss was healthy."""

    def __init__(self, state: TrainingState, time_s: float) -> None:
        """Begin with the present state."""
        self._snapshot = take_snapshot(state, time_s)
        self._rollbacks = 0

    def keep_if_healthy(self, state: TrainingState, time_s: float) -> None:
        """Replace the copy by the present state if its loss is close to the lowest so far."""
        state.read_losses()
        if state.detector.healthy:
            self._snapshot = take_snapshot(state, time_s)

    def roll_back(self, state: TrainingState, error: DivergedError, time_s: float, peak_rate: float) -> Rollback:
        """Restore the copy, and lower the learning rate from now on.

        Raises:
            DivergedError: the one given, after too many rollbacks.
        """
        self._rollbacks += 1
        if self._rollbacks > MOST_ROLLBACKS:
            raise error
        position, good = state.position, self._snapshot.position
        diverged_step = position.step
        for name in ("epoch", "step_in_epoch", "step", "loss_sum", "loss_count", "epoch_s"):
            setattr(position, name, getattr(good, name))
        position.rate_scale *= LOWER
        position.worse, position.done = 0, False
        state.forget_losses()
        state.optimizer.state.clear()  # The good state may be from before the first step.
        restore(state, self._snapshot)
        rate = peak_rate * position.rate_scale
        return Rollback(position.step, time_s, diverged_step=diverged_step, learning_rate=rate)
