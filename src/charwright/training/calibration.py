"""How fast this machine trains: a few real steps of each of some widths, in a second or three."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from charwright.config import ModelConfig, SequenceConfig, TrainingConfig
from charwright.model.language_model import LanguageModel
from charwright.model.machine import choose_precision, keep_memory
from charwright.model.recurrent import choose_core
from charwright.training.batch import Batch
from charwright.training.loop import make_optimizer, train_step
from charwright.training.recipes import Plan, Text, make_plan, start_of_plan

WIDTHS = (256, 512, 1024, 2048)
LONGEST_S = 3.0
SHARE = 0.05  # of the budget
EACH_S = 0.2  # of timed steps, for each width
SLOWEST = 1_500  # steps in the whole budget: a width that cannot do so many is not worth measuring the next one


def measure_speeds(
    vocabulary_size: int,
    sequences: SequenceConfig,
    budget_s: float,
    *,
    device: torch.device,
    precision: torch.dtype,
    core: str = "auto",
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, float]:
    """Characters a second for widths of one GRU layer, narrow ones first, until the time for it is over.

    The first is always measured. With `budget_s` seconds of training to come, no more than a twentieth of them and
    three seconds are begun to be spent.
    """
    keep_memory()  # As training does; without it the steps are half as fast.
    ends = clock() + min(LONGEST_S, SHARE * budget_s)

    def speed(width: int) -> float:
        return _speed(width, vocabulary_size, sequences, device, precision, core, clock, ends)

    with _quicker_threads(lambda: speed(WIDTHS[0]), device) as first:
        speeds = {WIDTHS[0]: first}
        for width in WIDTHS[1:]:
            slowest = min(speeds.values())
            steps = slowest * budget_s / (sequences.batch * sequences.seq_length)
            # The next one may take four times as long, and would be begun in vain where it cannot be finished.
            step_s = 4 * sequences.batch * sequences.seq_length / slowest
            if steps < SLOWEST or clock() + 2 * step_s > ends:
                break
            speeds[width] = speed(width)
    return speeds


def plan_here(
    text: Text,
    options: Mapping[str, Any],
    *,
    device: torch.device,
    core: str = "auto",
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Plan for this machine: it is measured where the budget is in minutes."""
    start = start_of_plan(options)
    minutes = start.training.minutes
    if minutes is None:
        return make_plan(text, options, {})
    precision = choose_precision(start.training.precision, device)
    speeds = measure_speeds(
        text.vocabulary,
        start.sequences,
        minutes * 60,
        device=device,
        precision=precision,
        core=choose_core(core, device, precision),
        clock=clock,
    )
    return make_plan(text, options, speeds)


@contextmanager
def _quicker_threads(speed: Callable[[], float], device: torch.device) -> Iterator[float]:
    """The speed with all threads or with one, whichever is higher; inside, so many are in use."""
    most = torch.get_num_threads()
    fastest = speed()
    if device.type != "cpu" or most == 1:
        yield fastest
        return
    try:
        torch.set_num_threads(1)
        alone = speed()
        if alone < fastest:
            torch.set_num_threads(most)
        yield max(alone, fastest)
    finally:
        torch.set_num_threads(most)


def _speed(
    width: int,
    vocabulary_size: int,
    sequences: SequenceConfig,
    device: torch.device,
    precision: torch.dtype,
    core: str,
    clock: Callable[[], float],
    ends: float,
) -> float:
    """Characters a second of one width: real steps on made-up text, the first of which is not counted."""
    model = LanguageModel(ModelConfig(units=width), vocabulary_size, precision=precision, core=core).to(device)
    optimizer = make_optimizer(model, TrainingConfig())
    generator = torch.Generator(device).manual_seed(1)
    shape = (sequences.seq_length, sequences.batch)
    ids = torch.randint(vocabulary_size, shape, generator=generator, device=device)
    batch = Batch(ids, ids, None, generator)
    float(train_step(model, batch, optimizer))  # Reading the loss waits for the device.
    began, steps = clock(), 0
    while steps < 1 or (clock() - began < EACH_S and clock() < ends):
        batch.state = None
        float(train_step(model, batch, optimizer))
        steps += 1
    return steps * sequences.batch * sequences.seq_length / max(clock() - began, 1e-9)
