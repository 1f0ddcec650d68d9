"""Measures how fast this machine trains: a few real steps at each of several widths, in three seconds at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from charwright.config import ModelConfig, SequenceConfig, TrainingConfig
from charwright.model.compute import Compute, keep_memory
from charwright.model.language_model import LanguageModel
from charwright.planning.plan import Plan, make_plan, starting_recipe
from charwright.planning.profile import TextProfile
from charwright.threads import fastest_count
from charwright.training.batch import Batch
from charwright.training.loop import train_step
from charwright.training.optimizer import make_optimizer

WIDTHS = (256, 512, 1024, 2048)
LONGEST_S = 3.0
SHARE = 0.05  # of the budget
EACH_S = 0.2  # of timed steps per width
DROPOUT = 0.1  # Plans always have dropout, whose masks some cores compute on a slower path.
FEWEST_STEPS = 1_500  # in the whole budget: a width that allows fewer makes wider ones not worth measuring


def plan_here(
    text: TextProfile,
    options: Mapping[str, Any],
    compute: Compute,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Plan for this machine, which is measured if the budget is in minutes."""
    start = starting_recipe(options)
    minutes = start.training.minutes
    if minutes is None:
        return make_plan(text, options, {})
    speeds = measure_speeds(text.vocabulary, start.sequences, minutes * 60, compute, clock=clock)
    return make_plan(text, options, speeds)


def measure_speeds(
    vocabulary_size: int,
    sequences: SequenceConfig,
    budget_s: float,
    compute: Compute,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, float]:
    """Characters per second of one GRU layer by width, from the narrowest up as far as the time allows.

    The narrowest is always measured. The measurement takes at most three seconds, and a twentieth of `budget_s`.
    """
    keep_memory()  # As training does; without it the steps are half as fast.
    ends = clock() + min(LONGEST_S, SHARE * budget_s)

    def speed(width: int) -> float:
        return _speed(width, vocabulary_size, sequences, compute, clock, ends)

    with _fastest_threads(lambda: speed(WIDTHS[0]), compute) as first:
        speeds = {WIDTHS[0]: first}
        for width in WIDTHS[1:]:
            slowest = min(speeds.values())
            steps = slowest * budget_s / (sequences.batch * sequences.seq_length)
            # The next width may be four times slower; it is not started if it cannot be finished.
            step_s = 4 * sequences.batch * sequences.seq_length / slowest
            if steps < FEWEST_STEPS or clock() + 2 * step_s > ends:
                break
            speeds[width] = speed(width)
    return speeds


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


def _speed(
    width: int,
    vocabulary_size: int,
    sequences: SequenceConfig,
    compute: Compute,
    clock: Callable[[], float],
    ends: float,
) -> float:
    """Characters per second at one width: real steps on random token ids, after one that is not counted."""
    config = ModelConfig(units=width, dropout=DROPOUT, recurrent_dropout=DROPOUT)
    model = LanguageModel(config, vocabulary_size, compute=compute)
    optimizer = make_optimizer(model, TrainingConfig())
    generator = torch.Generator(compute.device).manual_seed(1)
    shape = (sequences.seq_length, sequences.batch)
    ids = torch.randint(vocabulary_size, shape, generator=generator, device=compute.device)
    batch = Batch(ids, ids, None, generator)
    float(train_step(model, batch, optimizer))  # Reading the loss waits for the device.
    began, steps = clock(), 0
    while steps < 1 or (clock() - began < EACH_S and clock() < ends):
        batch.state = None
        float(train_step(model, batch, optimizer))
        steps += 1
    return steps * sequences.batch * sequences.seq_length / max(clock() - began, 1e-9)
