"""How far training is by its budget, how fast it goes, and what is due by the clock."""

from __future__ import annotations

import math
from collections.abc import Callable

from charwright.config import TrainingConfig
from charwright.errors import UsageError
from charwright.training.snapshot import Position

REPORT_EVERY = 0.02  # of the budget, at most
LEAVING_S = 0.5  # for a process to end, once all is saved
REPORT_COST = 0.03  # of the time, at most: on a short budget validation would take a tenth of it


class Pace:
    """Steps and seconds of one training run, over all its sessions.

    With a budget in steps or epochs no weight depends on the clock, only what is shown and when a checkpoint is made.
    """

    def __init__(
        self,
        config: TrainingConfig,
        position: Position,
        steps_per_epoch: int,
        clock: Callable[[], float],
        spent_s: float = 0.0,
    ) -> None:
        """Go on from `position`, which is counted on in place; `spent_s` of the time were gone before.

        Raises:
            UsageError: when the configuration has no budget.
        """
        if config.epochs is None and config.steps is None and config.minutes is None:
            raise UsageError("training needs a budget: --epochs, --steps or --minutes")
        self.config, self.position, self.clock = config, position, clock
        self.steps = config.steps or (config.epochs or 1) * steps_per_epoch
        # Where all steps are few, a tenth of them is enough to begin with.
        self.warmup = config.warmup if config.minutes is not None else min(config.warmup, self.steps // 10)
        self._began = clock()
        self._before_s = position.elapsed_s + spent_s
        self._saved_s = self._reported_s = self.time_s
        self._report_cost_s: float | None = None
        self.begin_epoch()

    @property
    def time_s(self) -> float:
        """Training time so far, over all sessions."""
        return self._before_s + self.clock() - self._began

    @property
    def fraction(self) -> float:
        """How much of the budget is spent, from 0 to 1 and a little beyond."""
        if self.config.minutes is not None:
            return self.time_s / self._training_s
        return self.position.step / self.steps

    @property
    def _training_s(self) -> float:
        """The budget's seconds without those that the last validation and the last checkpoint will take."""
        budget_s = (self.config.minutes or 0) * 60
        reserved_s = min(LEAVING_S, 0.01 * budget_s) + 1.1 * (self._report_cost_s or 0.0)
        return max(0.5 * budget_s, budget_s - reserved_s)

    def spent_before(self) -> bool:
        """Whether the budget was spent already when this position was reached."""
        if self.config.minutes is not None:
            # Training ends a little before its time, so that the last checkpoint ends with it.
            done = self.position.done_minutes is not None and self.config.minutes <= self.position.done_minutes
            return done or self.position.elapsed_s >= self.config.minutes * 60
        return self.position.step >= self.steps

    @property
    def learning_rate_factor(self) -> float:
        """What the schedule makes of the highest learning rate now."""
        risen = min(1.0, (self.position.step + 1) / (self.warmup + 1))
        if self.config.schedule == "constant":
            return risen
        return risen * 0.5 * (1 + math.cos(math.pi * min(1.0, self.fraction)))

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
            return max(0.0, self._training_s - self.time_s)
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
        if self.config.minutes is None:
            return True
        cost_s = self._report_cost_s or 0.0
        return self.time_s - self._reported_s >= max(2.0, REPORT_EVERY * self.config.minutes * 60, cost_s / REPORT_COST)

    @property
    def report_due_inside(self) -> bool:
        """Whether an epoch that is not over yet is too long to wait for; never with a budget that knows no clock."""
        return self.config.minutes is not None and self.report_due

    def reported(self, began_s: float) -> None:
        """Validation, sample and checkpoint were made, from the training time `began_s` until now."""
        self._reported_s = self.time_s
        self._report_cost_s = self._reported_s - began_s
