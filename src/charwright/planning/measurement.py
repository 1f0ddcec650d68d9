"""Times real training steps on random token ids: the speed of one way to compute, for one model and batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from charwright.config import ModelConfig, SequenceConfig, TrainingConfig
from charwright.model.compute import Compute, keep_memory
from charwright.model.language_model import LanguageModel
from charwright.training.batch import Batch
from charwright.training.cuda_graph import fastest_step, has_graphs
from charwright.training.loop import train_step
from charwright.training.optimizer import make_optimizer

EACH_S = 0.2  # of timed steps for a speed that a plan relies on
BRIEF_STEPS = 3  # for a comparison, which the fastest of them decides
BRIEF_S = 0.1
HOPELESS = 1.6
"""A candidate is abandoned when a step takes this many times the best one's."""
WARMING = 2.0
"""The first step may take this many times longer: it creates threads and fills caches."""
CHUNK = 10  # steps of a graph that are timed together: to wait for the device after each would be part of the time
RECORDING = 20  # A recording is expected to take the time of this many steps: Python launches its kernels one by one.


@dataclass(frozen=True)
class Deadline:
    """When a measurement has to end, by a monotonic clock in seconds."""

    clock: Callable[[], float]
    ends: float

    @property
    def left_s(self) -> float:
        """The seconds that are left; negative after the deadline."""
        return self.ends - self.clock()

    def part(self, share: float) -> Deadline:
        """The deadline after a share of the time that is left."""
        return Deadline(self.clock, self.ends - (1 - share) * self.left_s)


@dataclass(frozen=True)
class Workload:
    """What a training step computes: a model, the size of its vocabulary, and a batch."""

    model: ModelConfig
    vocabulary: int
    sequences: SequenceConfig

    @property
    def characters(self) -> int:
        """Characters per step."""
        return self.sequences.batch * self.sequences.seq_length


def chunk_on(device: torch.device) -> int:
    """How many steps are timed together on a device."""
    return CHUNK if has_graphs(device) else 1


def steps_taken(device: torch.device, chunks: int) -> int:
    """About how many steps' time it takes to time some chunks, with the recording and the first step before them."""
    return (RECORDING if has_graphs(device) else 0) + 1 + chunks * chunk_on(device)


def step_times(workload: Workload, compute: Compute, clock: Callable[[], float]) -> Iterator[float]:
    """The seconds of one step, then those of a step in one chunk after another; the first is slower than the others.

    The steps are those of training. Where they are a graph, it is recorded before, outside of the times.
    """
    step = training_step(workload, compute)
    if has_graphs(compute.device):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # `fit` warns if its own recording fails.
            float(step())
    yield _seconds_per_step(step, 1, clock)
    while True:
        yield _seconds_per_step(step, chunk_on(compute.device), clock)


def _seconds_per_step(step: Callable[[], Tensor], count: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(count):
        loss = step()
    float(loss)  # Reading the loss waits for the device.
    return max(clock() - began, 1e-9) / count


def training_step(workload: Workload, compute: Compute) -> Callable[[], Tensor]:
    """A step as `fit` does it, on the same batch each time; returns the loss, which is still on the device."""
    keep_memory()  # As training does; without it the steps are half as fast.
    generator = torch.Generator(compute.device).manual_seed(1)
    model = LanguageModel(workload.model, workload.vocabulary, seed=None, compute=compute)
    with torch.no_grad():  # Any weights will do, and those of a new model take as long as some steps.
        for weight in model.named_weights().values():
            weight.uniform_(-0.05, 0.05, generator=generator)
    optimizer = make_optimizer(model, TrainingConfig())
    shape = (workload.sequences.seq_length, workload.sequences.batch)
    ids = torch.randint(workload.vocabulary, shape, generator=generator, device=compute.device)
    batch = Batch(ids, ids, None, generator)
    fastest = fastest_step(train_step, compute.device)

    def step() -> Tensor:
        batch.state = None
        return fastest(model, batch, optimizer)

    return step


def mean_speed(workload: Workload, compute: Compute, deadline: Deadline, each_s: float = EACH_S) -> float:
    """Characters per second, over the steps of `each_s` seconds: what training will do."""
    times, chunk = step_times(workload, compute, deadline.clock), chunk_on(compute.device)
    next(times)
    chunks, seconds = 1, next(times)
    while chunk * seconds < each_s and deadline.left_s > 0:
        chunks, seconds = chunks + 1, seconds + next(times)
    return chunks * workload.characters / seconds


def brief_speed(workload: Workload, compute: Compute, best: float, deadline: Deadline) -> float:
    """Characters per second in the fastest of a few chunks of steps, which other programs disturb least.

    A candidate that is hopeless beside the `best` speed so far (0: none) is abandoned after a step.
    """
    hopeless_s = HOPELESS * workload.characters / best if best else float("inf")
    times, enough_s = step_times(workload, compute, deadline.clock), BRIEF_S / chunk_on(compute.device)
    if (first_s := next(times)) > WARMING * hopeless_s:
        return workload.characters / first_s
    seconds = [next(times)]
    while seconds[0] < hopeless_s and len(seconds) < BRIEF_STEPS and sum(seconds) < enough_s and deadline.left_s > 0:
        seconds.append(next(times))
    return workload.characters / min(seconds)
