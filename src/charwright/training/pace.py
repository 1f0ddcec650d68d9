"""How far training is by its budget, how fast it goes, and what is due by the clock."""

from __future__ import annotations

import math
from collections.abc import Callable

from charwright.config import TrainingConfig
from charwright.errors import UsageError
from charwright.training.snapshot import Position


class Pace:
    """Steps and seconds of one training run, over all its sessions.

    With a budget in steps or epochs no weight depends on the clock, only what is shown and when a checkpoint is made.
    """

    def __init__(
        self, config: TrainingConfig, position: Position, steps_per_epoch: int, clock: Callable[[], float]
    ) -> None:
        """Go on from `position`, which is counted on in place.

        Raises:
            UsageError: when the configuration has no budget.
        """
        if config.epochs is None and config.steps is None and config.minutes is None:
            raise UsageError("training needs a budget: --epochs, --steps or --minutes")
        self.config, self.position, self.clock = config, position, clock
        self.steps = config.steps or (config.epochs or 1) * steps_per_epoch
        self._began = clock()
        self._before_s = position.elapsed_s
        self._saved_s = self._reported_s = self.time_s
        self.begin_epoch()

    @property
    def time_s(self) -> float:
        """Training time so far, over all sessions."""
        return self._before_s + self.clock() - self._began

    @property
    def fraction(self) -> float:
        """How much of the budget is spent, from 0 to 1 and a little beyond."""
        if self.config.minutes is not None:
            return self.time_s / (self.config.minutes * 60)
        return self.position.step / self.steps

    def spent_before(self) -> bool:
        """Whether the budget was spent already when this position was reached."""
        if self.config.minutes is not None:
            return self.position.elapsed_s >= self.config.minutes * 60
        return self.position.step >= self.steps

    @property
    def learning_rate_factor(self) -> float:
        """What the schedule makes of the highest learning rate now."""
        if self.config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, self.fraction)))

    def begin_epoch(self) -> None:
        """Batches are about to come: those of a new epoch, or the rest of one that was stopped."""
        self._epoch_began = self.clock() - self.position.epoch_s
        self._noticed_s, self._noticed_step = self.clock(), self.position.step

    def count_step(self) -> None:
        """One more batch is done."""
        self.position.step += 1
        self.position.step_in_epoch += 1
        self.count_time()

    def count_time(self) -> None:
        """Bring the epoch's seconds up to now."""
        self.position.epoch_s = self.clock() - self._epoch_began

    def seconds_per_step(self) -> float:
        """The mean since this was last asked."""
        now, step = self.clock(), self.position.step
        mean_s = (now - self._noticed_s) / max(1, step - self._noticed_step)
        self._noticed_s, self._noticed_step = now, step
        return mean_s

    def remaining_s(self, seconds_per_step: float) -> float | None:
        """The time left: of the budget's minutes, or for its steps at this speed."""
        if self.config.minutes is not None:
            return max(0.0, self.config.minutes * 60 - self.time_s)
        return max(0, self.steps - self.position.step) * seconds_per_step if seconds_per_step > 0 else None

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint was long enough ago."""
        return self.time_s - self._saved_s >= self.config.checkpoint_minutes * 60

    def saved(self) -> None:
        """A checkpoint was made just now."""
        self._saved_s = self.time_s

    @property
    def report_due(self) -> bool:
        """Whether enough time has gone by to spend some on validation, a sample and a checkpoint.

        With a budget in epochs or steps the answer is always yes, so that it depends on no clock.
        """
        minutes = self.config.minutes
        return minutes is None or self.time_s - self._reported_s >= max(2.0, 0.02 * minutes * 60)

    def reported(self) -> None:
        """Validation, sample and checkpoint were made just now."""
        self._reported_s = self.time_s
