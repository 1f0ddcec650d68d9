"""The budget of a training run: how much is spent, the pace, and when reports and checkpoints are due."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch

from charwright.config import TrainingConfig
from charwright.data.prefetch import prefetch
from charwright.data.sequences import Dataset, Pair
from charwright.errors import UsageError
from charwright.training.snapshot import Position

REPORT_EVERY = 0.02  # the shortest interval between reports, as a fraction of the budget
VALIDATION_PASSES = 10  # after so many passes over the text a validation cannot wait for a report,
VALIDATION_GROWTH = 0.15  # or, later on, after this share of the steps so far
VALIDATION_COST = 0.05  # the largest fraction of the time spent on these validations
REPORT_COST = 0.03  # the largest fraction of the time spent on reports; on a short budget they would take a tenth
AT_ONCE = 8  # batches that are cut in a row; so many may be cut before one of them is needed
EXIT_S = 0.5  # for the process to exit after everything is saved


def steady(clock: Callable[[], float]) -> Callable[[], float]:
    """The same clock, but where it goes back no time has passed: a budget would last longer by the jump."""
    last_s, lost_s = -math.inf, 0.0

    def now() -> float:
        nonlocal last_s, lost_s
        now_s = clock()
        lost_s += max(0.0, last_s - now_s)
        last_s = now_s
        return now_s + lost_s

    return now


class Budget:
    """Steps and seconds of a training run, resumes included.

    With a budget in steps or epochs no weight depends on the clock, only what is shown and when checkpoints are saved.
    """

    def __init__(
        self,
        config: TrainingConfig,
        position: Position,
        steps_per_epoch: int,
        clock: Callable[[], float],
        spent_s: float = 0.0,
    ) -> None:
        """Continue from `position`, which is updated in place; `spent_s` seconds of the budget are already spent.

        Raises:
            UsageError: when the configuration has no budget.
        """
        if config.epochs is None and config.steps is None and config.minutes is None:
            raise UsageError("training needs a budget: --epochs, --steps or --minutes")
        self.config, self.position, self.clock = config, position, clock
        self._steps_per_epoch, self._validated_step, self._validation_cost_s = steps_per_epoch, position.step, 0.0
        self.steps = config.steps or (config.epochs or 1) * steps_per_epoch
        # A tenth of a small number of steps is enough warm-up.
        self.warmup = config.warmup if config.minutes is not None else min(config.warmup, self.steps // 10)
        self._began = clock()
        self._before_s = position.elapsed_s + spent_s
        self._saved_s = self._reported_s = self._validated_s = self.time_s
        self._report_cost_s: float | None = None
        self.begin_epoch()

    @property
    def time_s(self) -> float:
        """Training time so far, resumes included."""
        return self._before_s + self.clock() - self._began

    @property
    def fraction(self) -> float:
        """The spent fraction of the budget; slightly above 1 at the end."""
        if self.config.minutes is not None:
            return self.time_s / self._training_s
        return self.position.step / self.steps

    @property
    def _training_s(self) -> float:
        """The seconds of the budget, less those that the last validation and checkpoint take."""
        budget_s = (self.config.minutes or 0) * 60
        reserved_s = min(EXIT_S, 0.01 * budget_s) + 1.1 * (self._report_cost_s or 0.0)
        return max(0.5 * budget_s, budget_s - reserved_s)

    def spent_before(self) -> bool:
        """Whether the budget was already spent when this position was reached."""
        if self.config.minutes is not None:
            # Training ends slightly before its time, so that the last checkpoint is saved in time.
            done = self.position.done_minutes is not None and self.config.minutes <= self.position.done_minutes
            return done or self.position.elapsed_s >= self.config.minutes * 60
        return self.position.step >= self.steps

    def nothing_left(self) -> bool:
        """Whether a resume has nothing to do; an epoch that is not yet reported is always completed."""
        reported = self.position.done or self.position.loss_count == 0
        return reported and self.spent_before()

    def begin_epoch(self) -> None:
        """Start timing an epoch, or the rest of one after a resume."""
        self._epoch_began = self.clock() - self.position.epoch_s
        self._last_s, self._last_step = self.clock(), self.position.step

    def count_step(self) -> None:
        """Count one more batch."""
        self.position.step += 1
        self.position.step_in_epoch += 1
        self.update_epoch_time()

    def update_epoch_time(self) -> None:
        """Bring the epoch's seconds up to date."""
        self.position.epoch_s = self.clock() - self._epoch_began

    def seconds_per_step(self) -> float:
        """The mean since the previous call."""
        now, step = self.clock(), self.position.step
        mean_s = (now - self._last_s) / max(1, step - self._last_step)
        self._last_s, self._last_step = now, step
        return mean_s

    def remaining_s(self, seconds_per_step: float) -> float | None:
        """The time left: of the minutes, or for the remaining steps at this pace."""
        if self.config.minutes is not None:
            return max(0.0, self._training_s - self.time_s)
        return max(0, self.steps - self.position.step) * seconds_per_step if seconds_per_step > 0 else None

    @property
    def checkpoint_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed since the last checkpoint."""
        return self.time_s - self._saved_s >= self.config.checkpoint_minutes * 60

    def saved(self) -> None:
        """Record that a checkpoint was saved."""
        self._saved_s = self.time_s

    @property
    def report_due(self) -> bool:
        """Whether it is time for a validation, a sample and a checkpoint.

        Always true with a budget in epochs or steps, so that the answer does not depend on the clock.
        """
        if self.config.minutes is None:
            return True
        cost_s = self._report_cost_s or 0.0
        return self.time_s - self._reported_s >= max(2.0, REPORT_EVERY * self.config.minutes * 60, cost_s / REPORT_COST)

    @property
    def report_due_within_epoch(self) -> bool:
        """Whether a report cannot wait for the end of the epoch; never with a budget in epochs or steps."""
        return self.config.minutes is not None and self.report_due

    def reported(self, began_s: float) -> None:
        """Record that a report was made, from the training time `began_s` until now."""
        self._reported_s = self._validated_s = self.time_s
        self._report_cost_s = self._reported_s - began_s
        self._validated_step = self.position.step

    @property
    def validation_due(self) -> bool:
        """Whether a short text was read so often that the best weights may come and go before the next report.

        A network learns a text of a page by heart within a second. Never true with a budget in epochs or steps, where
        each epoch has a report.
        """
        if self.config.minutes is None or self.time_s - self._validated_s < self._validation_cost_s / VALIDATION_COST:
            return False
        steps = self.position.step
        return steps - self._validated_step >= max(VALIDATION_PASSES * self._steps_per_epoch, VALIDATION_GROWTH * steps)

    def validated(self, began_s: float) -> None:
        """Record that a validation without a report was made, from the training time `began_s` until now."""
        self._validated_s, self._validated_step = self.time_s, self.position.step
        self._validation_cost_s = self._validated_s - began_s


def remaining_batches(dataset: Dataset, budget: Budget, device: torch.device) -> Iterator[Pair]:
    """The rest of the current epoch, prepared in the background where that saves time."""
    budget.begin_epoch()
    # None are left if the run stopped after the budget's last step, before its epoch was reported. A run without any
    # step trains on one batch, even if the preparation took the whole budget.
    if budget.position.step and budget.spent_before():
        return iter(())
    batches = dataset.batches(budget.position.epoch, budget.position.step_in_epoch)
    # On a CPU whose cores all compute, a thread interrupts them, which costs more than a batch from memory.
    at_hand = device.type == "cpu" and isinstance(getattr(dataset, "ids", None), np.ndarray)
    return _in_groups(batches) if at_hand else prefetch(batches)


def _in_groups(batches: Iterator[Pair]) -> Iterator[Pair]:
    """The same batches, `AT_ONCE` cut at a time: after a step the caches are cold, and the first cut takes longest."""
    while group := list(islice(batches, AT_ONCE)):
        yield from group
