"""Measures this machine for a training run of some minutes: how to compute, and how fast, in three seconds at most.

First all candidates are ranked on one width. On CUDA the batch is chosen next. Then the best candidate is timed at
several widths, which the plan needs, and at the end the best few are compared on the model as planned.
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
from charwright.planning.batches import SLOWER, SMALLEST, batches_within
from charwright.planning.choice import Choice, candidates, ranking
from charwright.planning.measurement import (
    BRIEF_S,
    BRIEF_STEPS,
    Deadline,
    Workload,
    brief_speed,
    mean_speed,
    steps_taken,
)
from charwright.planning.plan import Plan, make_plan, planned_batch, planned_parts, starting_recipe
from charwright.planning.profile import TextProfile
from charwright.planning.speeds import speed_at
from charwright.threads import fastest_count

WIDTHS = (256, 512, 1024, 2048)
RANKED_AT = 512  # the width at which candidates are ranked, if there is time, else the narrowest; batches always
RANKING_SHARE = 0.5  # of the time that is left after the first measurement
BATCHES_SHARE = 0.5  # of the time that is left after the ranking
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
    clock: Clock = time.perf_counter,
) -> tuple[Plan, Choice]:
    """Plan for this machine and choose how it computes, by measurement if the budget is in minutes."""
    start = starting_recipe(options)
    if start.training.minutes is None:
        return make_plan(text, options, {}), Choice(wanted.by_rule())
    start = start.with_options(planned_parts(text, options))
    masked = options.get("recurrent_dropout") != 0
    pool = candidates(wanted, masked=masked or start.model.multiplicative)
    with _calibrated(pool, text.vocabulary, start, clock, masked=masked) as calibration:
        batch = _batch_here(text, options, start.sequences, calibration)
        speeds = calibration.speeds()
        plan = make_plan(text, options, speeds, batch)
        ratio = calibration.compare(plan.recipe.model, plan.speed)
    if ratio != 1:
        plan = make_plan(text, options, {units: ratio * speed for units, speed in speeds.items()}, batch)
    return plan, calibration.choice()


def _batch_here(
    text: TextProfile, options: Mapping[str, Any], sequences: SequenceConfig, calibration: Calibration
) -> int:
    """The batch of the plan, from which on all is measured: larger on CUDA, if none is given by hand."""
    batches = batches_within(text.tokens, sequences.seq_length)
    if calibration.best.device.type != "cuda" or "batch" in options or len(batches) == 1:
        return SMALLEST
    seconds = calibration.batch_times(batches)
    if not seconds:
        return SMALLEST
    batch = planned_batch(text, options, calibration.known, seconds)
    calibration.use_batch(batch, seconds[batch])
    return batch


def choose_here(recipe: Recipe, vocabulary_size: int, wanted: Wanted, *, clock: Clock = time.perf_counter) -> Choice:
    """Choose how a given recipe computes on this machine, by measurement if its budget is in minutes."""
    model = recipe.model
    masked = model.recurrent_dropout > 0
    pool = candidates(wanted, masked=masked or model.multiplicative)
    if recipe.training.minutes is None or len(pool) == 1:
        return Choice(wanted.by_rule())
    with _calibrated(pool, vocabulary_size, recipe, clock, masked=masked) as calibration:
        speed = speed_at({WIDTHS[0]: calibration.first}, model.units) / model.layers
        calibration.compare(model, speed)
    return calibration.choice()


@contextmanager
def _calibrated(
    pool: Sequence[Compute], vocabulary_size: int, recipe: Recipe, clock: Clock, *, masked: bool
) -> Iterator[Calibration]:
    budget_s = 60 * (recipe.training.minutes or 0.0)
    calibration = Calibration(
        pool,
        vocabulary_size,
        recipe.sequences,
        budget_s,
        clock,
        parts=recipe.model,
        masked=masked,
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
        parts: ModelConfig = ModelConfig(),  # noqa: B008 (it is frozen)
        masked: bool = True,
    ) -> None:
        """Start the clock; `pool` are the candidates, the one by the written rule first.

        `parts` has the cell, the n-grams, and whether the layer is multiplicative.
        """
        self.pool, self.best = list(pool), pool[0]
        self.first = 0.0
        """The speed at the narrowest width and the first batch, of the best candidate so far."""
        self._known: dict[int, float] = {}
        self._budget_s = budget_s
        self._deadline = Deadline(clock, clock() + min(LONGEST_S, SHARE * budget_s))
        kept = {name: getattr(parts, name) for name in ("cell", "ngram_bits", "ngram_order", "multiplicative")}
        model = ModelConfig(units=WIDTHS[0], dropout=DROPOUT, recurrent_dropout=DROPOUT * masked, **kept)
        self._workload = Workload(model, vocabulary_size, sequences)
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
        each = steps_taken(self.best.device, BRIEF_STEPS)
        deadline = self._deadline.part(RANKING_SHARE)
        width = RANKED_AT if 4 * each * len(self.pool) * narrow_s < deadline.left_s else WIDTHS[0]
        if len(self.pool) == 1 or 2 * each * narrow_s > deadline.left_s:
            return
        work = self._at(width)
        self._ranked = ranking(self.pool, lambda compute, best: brief_speed(work, compute, best, deadline), deadline)
        best = next(iter(self._ranked))
        if best != self.best:
            self.first *= self._ranked[best] / self._ranked.get(self.best, self._ranked[best])
            self.best = best

    @property
    def known(self) -> dict[int, float]:
        """The speeds of the best candidate by width that are measured so far."""
        return dict(self._known) or {WIDTHS[0]: self.first}

    def batch_times(self, batches: Sequence[int]) -> dict[int, float]:
        """Seconds per step by batch, ascending, as far as the time allows and until a step takes noticeably longer."""
        deadline, seconds = self._deadline.part(BATCHES_SHARE), dict[int, float]()
        # As in `speeds`: this width may be four times slower than the narrowest.
        cost_s = 4 * steps_taken(self.best.device, 1) * self._workload.characters / self.first
        for batch in batches:
            if cost_s > deadline.left_s:
                break
            work, began = self._at(RANKED_AT, batch=batch), deadline.clock()
            try:
                speed = mean_speed(work, self.best, deadline, BRIEF_S)
            except RuntimeError:  # as when the device lacks the memory
                break
            seconds[batch] = work.characters / speed
            cost_s = 2 * (deadline.clock() - began)
            if seconds[batch] > SLOWER * seconds[batches[0]]:
                break
        if seconds:
            self._known = self.known | {RANKED_AT: self._workload.characters / seconds[batches[0]]}
        return seconds

    def use_batch(self, batch: int, step_s: float) -> None:
        """Measure with this batch from now on; `step_s` is its time as measured by `batch_times`."""
        sequences = dataclasses.replace(self._workload.sequences, batch=batch)
        if sequences != self._workload.sequences:
            self._workload = dataclasses.replace(self._workload, sequences=sequences)
            self._known = {RANKED_AT: self._workload.characters / step_s}

    def speeds(self) -> dict[int, float]:
        """The speeds of the best candidate by width, as far as the time allows, with those that are known."""
        speeds = self.known
        for width in (width for width in WIDTHS if width not in speeds):
            slowest = min(speeds.values())
            steps = slowest * self._budget_s / self._workload.characters
            # The next width may be four times slower; it is not started if it cannot be finished.
            step_s = 4 * self._workload.characters / slowest
            if steps < FEWEST_STEPS or steps_taken(self.best.device, 1) * step_s > self._deadline.left_s:
                break
            speeds[width] = self._mean(width, self.best)
        return dict(sorted(speeds.items()))

    def compare(self, model: ModelConfig, speed: float) -> float:
        """Compare the best few candidates on a model; how many times faster than the best so far the new best is.

        `speed` is the expected speed of the best so far: without time for a few steps nothing is compared.
        """
        rivals = [compute for compute, ranked in self._ranked.items() if ranked * RIVAL > self._ranked[self.best]]
        work = dataclasses.replace(self._workload, model=model)
        steps = 2 * steps_taken(self.best.device, 1)
        if len(rivals) < 2 or steps * work.characters > speed * self._deadline.left_s:
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

    def _at(self, width: int, batch: int | None = None) -> Workload:
        work = self._workload
        model = dataclasses.replace(work.model, units=width)
        sequences = dataclasses.replace(work.sequences, batch=batch or work.sequences.batch)
        return dataclasses.replace(work, model=model, sequences=sequences)

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
