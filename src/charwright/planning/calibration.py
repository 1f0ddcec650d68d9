"""Measures this machine for a training in minutes: how to compute, and how fast, in three seconds at most.

First all candidates are ranked on one width, then the best is timed at several widths, which the plan needs, and at the
end the best few are compared on the model as planned.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from charwright.config import ModelConfig, Recipe, SequenceConfig
from charwright.model.compute import Compute, Wanted
from charwright.planning.choice import Choice, candidates, ranking
from charwright.planning.measurement import BRIEF_STEPS, Deadline, Workload, brief_speed, mean_speed
from charwright.planning.plan import Plan, make_plan, starting_recipe
from charwright.planning.profile import TextProfile
from charwright.planning.speeds import speed_at
from charwright.threads import fastest_count

WIDTHS = (256, 512, 1024, 2048)
RANKED_AT = 512  # the width at which candidates are ranked, if there is time; else the narrowest
RANKING_SHARE = 0.5  # of the time that is left after the first measurement
LONGEST_S = 3.0
SHARE = 0.05  # of the budget
DROPOUT = 0.1  # Plans always have dropout, whose masks some cores compute on a slower path.
FEWEST_STEPS = 1_500  # in the whole budget: a width that allows fewer makes wider ones not worth measuring
RIVAL = 1.5  # A candidate is compared on the planned model unless it was this many times slower.

Clock = Callable[[], float]


def plan_here(
    text: TextProfile,
    options: Mapping[str, Any],
    wanted: Wanted,
    *,
    clock: Clock = time.monotonic,
) -> tuple[Plan, Choice]:
    """Plan for this machine and choose how it computes, by measurement if the budget is in minutes."""
    start = starting_recipe(options)
    if start.training.minutes is None:
        return make_plan(text, options, {}), Choice(wanted.by_rule())
    masked = options.get("recurrent_dropout") != 0
    pool = candidates(wanted, masked=masked)
    with _calibrated(pool, text.vocabulary, start, clock, masked=masked) as calibration:
        speeds = calibration.speeds()
        plan = make_plan(text, options, speeds)
        ratio = calibration.compare(plan.recipe.model, plan.speed)
    if ratio != 1:
        plan = make_plan(text, options, {units: ratio * speed for units, speed in speeds.items()})
    return plan, calibration.choice()


def choose_here(recipe: Recipe, vocabulary_size: int, wanted: Wanted, *, clock: Clock = time.monotonic) -> Choice:
    """Choose how a given recipe computes on this machine, by measurement if its budget is in minutes."""
    model = recipe.model
    masked = model.recurrent_dropout > 0
    pool = candidates(wanted, masked=masked)
    if recipe.training.minutes is None or len(pool) == 1:
        return Choice(wanted.by_rule())
    with _calibrated(pool, vocabulary_size, recipe, clock, masked=masked) as calibration:
        speed = speed_at({WIDTHS[0]: calibration.first}, model.units) / model.layers
        calibration.compare(model, speed)
    return calibration.choice()


def measure_speeds(
    vocabulary_size: int,
    sequences: SequenceConfig,
    budget_s: float,
    compute: Compute,
    *,
    clock: Clock = time.monotonic,
) -> dict[int, float]:
    """Characters per second of one GRU layer by width, from the narrowest up as far as the time allows.

    The narrowest is always measured. The measurement takes at most three seconds, and a twentieth of `budget_s`.
    """
    with Calibration([compute], vocabulary_size, sequences, budget_s, clock).running() as calibration:
        return calibration.speeds()


@contextmanager
def _calibrated(
    pool: Sequence[Compute], vocabulary_size: int, recipe: Recipe, clock: Clock, *, masked: bool
) -> Iterator[Calibration]:
    budget_s = 60 * (recipe.training.minutes or 0.0)
    calibration = Calibration(
        pool, vocabulary_size, recipe.sequences, budget_s, clock, cell=recipe.model.cell, masked=masked
    )
    with calibration.running():
        calibration.rank()
        yield calibration


class Calibration:
    """Measurements for one text and one batch size, within a twentieth of the budget and three seconds."""

    def __init__(
        self,
        pool: Sequence[Compute],
        vocabulary_size: int,
        sequences: SequenceConfig,
        budget_s: float,
        clock: Clock,
        *,
        cell: str = "gru",
        masked: bool = True,
    ) -> None:
        """Start the clock; `pool` are the candidates, the one by the written rule first."""
        self.pool, self.best = list(pool), pool[0]
        self.first = 0.0
        """The speed at the narrowest width, of the first candidate that works."""
        self._budget_s = budget_s
        self._deadline = Deadline(clock, clock() + min(LONGEST_S, SHARE * budget_s))
        model = ModelConfig(units=WIDTHS[0], dropout=DROPOUT, recurrent_dropout=DROPOUT * masked)
        self._workload, self._cell = Workload(model, vocabulary_size, sequences), cell
        self._ranked: dict[Compute, float] = {}
        self._compared: dict[Compute, float] = {}

    @contextmanager
    def running(self) -> Iterator[Calibration]:
        """Measure the first candidate, and all else in the block, with the fastest number of threads."""
        with _fastest_threads(self._measure_first, self.best) as self.first:
            yield self

    def _measure_first(self) -> float:
        """The mean speed at the narrowest width, which is measured whatever the time."""
        none_left = Deadline(self._deadline.clock, float("-inf"))
        found = ranking(self.pool, lambda compute, _: self._mean(WIDTHS[0], compute), none_left)
        [(self.best, speed)] = found.items()
        self.pool = self.pool[self.pool.index(self.best) :]  # Those before it failed.
        return speed

    def rank(self) -> None:
        """Rank all candidates at one width, if there is time for more than one."""
        narrow_s = self._workload.characters / self.first
        steps = (1 + BRIEF_STEPS) * len(self.pool)
        deadline = self._deadline.part(RANKING_SHARE)
        width = RANKED_AT if 4 * steps * narrow_s < deadline.left_s else WIDTHS[0]
        if len(self.pool) == 1 or 2 * (1 + BRIEF_STEPS) * narrow_s > deadline.left_s:
            return
        work = self._at(width, self._cell)
        self._ranked = ranking(self.pool, lambda compute, best: brief_speed(work, compute, best, deadline), deadline)
        best = next(iter(self._ranked))
        if best != self.best:
            self.first *= self._ranked[best] / self._ranked.get(self.best, self._ranked[best])
            self.best = best

    def speeds(self) -> dict[int, float]:
        """The speeds of the best candidate by width, as far as the time allows; the narrowest is always among them."""
        speeds = {WIDTHS[0]: self.first}
        for width in WIDTHS[1:]:
            slowest = min(speeds.values())
            steps = slowest * self._budget_s / self._workload.characters
            # The next width may be four times slower; it is not started if it cannot be finished.
            step_s = 4 * self._workload.characters / slowest
            if steps < FEWEST_STEPS or 2 * step_s > self._deadline.left_s:
                break
            speeds[width] = self._mean(width, self.best)
        return speeds

    def compare(self, model: ModelConfig, speed: float) -> float:
        """Compare the best few candidates on a model; how many times faster than the best so far the new best is.

        `speed` is the expected speed of the best so far: without time for a few steps nothing is compared.
        """
        rivals = [compute for compute, ranked in self._ranked.items() if ranked * RIVAL > self._ranked[self.best]]
        work = dataclasses.replace(self._workload, model=model)
        if len(rivals) < 2 or 4 * work.characters > speed * self._deadline.left_s:
            return 1.0
        deadline = self._deadline
        found = ranking(rivals, lambda compute, best: brief_speed(work, compute, best, deadline), deadline)
        before, self._compared = self.best, found
        self.best = next(iter(found))
        speeds = found if before in found else self._ranked  # It may have failed on this model.
        return speeds[self.best] / speeds[before]

    def choice(self) -> Choice:
        """What was chosen, and the speeds of all candidates; those far behind are scaled to the last model."""
        if len(self._ranked) < 2:
            return Choice(self.best)
        scale = min((speed / self._ranked[compute] for compute, speed in self._compared.items()), default=1.0)
        least = min((self._ranked[compute] for compute in self._compared), default=math.inf)
        behind = {compute: scale * speed for compute, speed in self._ranked.items() if speed < least}
        measured = self._compared | behind
        return Choice(self.best, {compute.label: round(speed) for compute, speed in measured.items()})

    def _at(self, width: int, cell: str = "gru") -> Workload:
        model = dataclasses.replace(self._workload.model, units=width, cell=cell)
        return dataclasses.replace(self._workload, model=model)

    def _mean(self, width: int, compute: Compute) -> float:
        return mean_speed(self._at(width), compute, self._deadline)


@contextmanager
def _fastest_threads(speed: Callable[[], float], compute: Compute) -> Iterator[float]:
    """Use all threads or one during the block, whichever is faster; yields that speed."""
    most = torch.get_num_threads()
    if compute.device.type != "cpu" or most == 1:
        yield speed()
        return

    def with_threads(count: int) -> float:
        torch.set_num_threads(count)
        return speed()

    try:
        count, fastest = fastest_count((most, 1), with_threads)
        torch.set_num_threads(count)
        yield fastest
    finally:
        torch.set_num_threads(most)
