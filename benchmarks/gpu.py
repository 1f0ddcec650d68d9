"""Training speed on a GPU in characters per second of complete steps. Without a CUDA device it says so and ends.

    python benchmarks/gpu.py

Two models, in the precision that charwright chooses on the device:

- The tutorial's, GRU 1024 with batches of 64 x 100, and the time of one epoch of tiny shakespeare. It has no dropout,
  so every side uses cuDNN: `nn.GRU`, charwright's plain step, and the step as a CUDA graph.
- GRU 512 with recurrent dropout and sequences of 64, which cuDNN cannot compute, in batches of 32 to
  512: the loop of `fused.py`, the loop with PyTorch's operators (`cuda_cells.py`), and the step with them as a CUDA
  graph. `nn.GRU` beside them has no dropout.

A step is complete: batch to the device, forward, loss, backward, clipping, fused Adam. All sides of a model are
measured in turn; a figure is the median of the rounds, and a ratio that of the pairs with `nn.GRU`, with minimum and
maximum.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import charwright as cw
from charwright.data.sequences import Pair, Windows
from charwright.model import cuda_cells
from charwright.model.compute import Compute
from charwright.training.batch import TrainStep, make_batch
from charwright.training.cuda_graph import fastest_step
from charwright.training.optimizer import clipped_gradients, make_optimizer
from machine import describe_machine, ratio_and_spread

VOCABULARY = 66
SHAKESPEARE_CHARACTERS = 1_115_394
CLIP_NORM = 1.0
TRAINING = cw.TrainingConfig(optimizer="adam", learning_rate=1e-3)
WARM_UP = 5
CHUNK = 20  # steps between two looks at the clock, which wait for the device


@dataclass(frozen=True)
class Work:
    """A model and its batches."""

    name: str
    units: int
    embedding: int
    batch: int
    seq_length: int
    recurrent_dropout: float
    sides: tuple[str, ...]

    @property
    def characters(self) -> int:
        """Characters in a step."""
        return self.batch * self.seq_length


TUTORIAL = Work("tutorial", 1024, 256, 64, 100, 0.0, ("plain step", "graph"))
PLANNED = tuple(
    Work(f"GRU 512, {batch} x 64", 512, 128, batch, 64, 0.2, ("loop", "operators", "graph")) for batch in (32, 128, 512)
)


class PeerModel(nn.Module):
    """The same model from PyTorch's own layers, without dropout."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, work.embedding)
        self.recurrent = nn.GRU(work.embedding, work.units)
        self.head = nn.Linear(work.units, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (T, B, V)."""
        return self.head(self.recurrent(self.embedding(ids))[0])


def pairs(work: Work) -> Iterator[Pair]:
    """Batches of random ids with a skewed frequency distribution, as in real text."""
    draws = np.random.Generator(np.random.Philox(1)).zipf(1.3, size=40 * work.batch * (work.seq_length + 1))
    windows = Windows((draws % VOCABULARY).astype(np.int32), work.seq_length, work.batch)
    return (pair for epoch in range(10**9) for pair in windows.batches(epoch))


def ours(work: Work, compute: Compute, step: TrainStep) -> Callable[[int], None]:
    """Some steps of charwright."""
    config = cw.ModelConfig(
        units=work.units, embedding_size=work.embedding, layers=1, recurrent_dropout=work.recurrent_dropout
    )
    model = cw.LanguageModel(config, VOCABULARY, compute=compute)
    model.train()
    optimizer = make_optimizer(model, TRAINING)
    following = enumerate(pairs(work))

    def run(count: int) -> None:
        with clipped_gradients(model, optimizer, CLIP_NORM):
            for _ in range(count):
                number, pair = next(following)
                step(model, make_batch(pair, None, TRAINING, number, compute.device), optimizer)

    return run


def theirs(work: Work, compute: Compute) -> Callable[[int], None]:
    """Some steps of PyTorch's own layers."""
    model = PeerModel(work).to(compute.device)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    following = enumerate(pairs(work))

    def run(count: int) -> None:
        for _ in range(count):
            number, pair = next(following)
            batch = make_batch(pair, None, TRAINING, number, compute.device)
            with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.precision == torch.bfloat16):
                loss = F.cross_entropy(model(batch.inputs).flatten(0, 1).float(), batch.targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()

    return run


def make_side(side: str, work: Work, compute: Compute) -> Callable[[int], None]:
    """Build one side and warm it up."""
    step = fastest_step(cw.train_step, compute.device) if side == "graph" else cw.train_step
    run = theirs(work, compute) if side == "nn.GRU" else ours(work, compute, step)
    without_operators = patch.object(cuda_cells, "CELLS", ())

    def limited(count: int) -> None:
        with without_operators if side == "loop" else nullcontext():
            run(count)

    limited(WARM_UP)
    return limited


def speed(run: Callable[[int], None], work: Work, seconds: float, synchronize: Callable[[], None]) -> float:
    """Characters per second over at least `seconds`."""
    synchronize()
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or count == 0:
        run(CHUNK)
        synchronize()
        count += CHUNK
    return count * work.characters / spent


def compare(work: Work, compute: Compute, rounds: int, seconds: float, synchronize: Callable[[], None]) -> None:
    """Measure all sides in turn and print their rows."""
    sides = {side: make_side(side, work, compute) for side in ("nn.GRU", *work.sides)}
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            speeds[side].append(speed(run, work, seconds, synchronize))
    for side, found in speeds.items():
        median = statistics.median(found)
        ratio, least, most = ratio_and_spread(found, speeds["nn.GRU"])
        steps = SHAKESPEARE_CHARACTERS // (work.batch * (work.seq_length + 1))
        print(
            f"| {work.name} | {side} | {median:,.0f} | {1000 * work.characters / median:.2f} | "
            f"{steps * work.characters / median:.2f} | {ratio:.2f} ({least:.2f} to {most:.2f}) |",
            flush=True,
        )


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per side and round")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here")
        return
    compute = Compute.choose(device="cuda")
    print(f"{torch.cuda.get_device_name()}, {compute.precision}; {describe_machine()}; PyTorch {torch.__version__}\n")
    print("| model | side | characters/s | ms per step | s per epoch of tiny shakespeare | / nn.GRU |")
    print("|---|---|---|---|---|---|")
    for work in (TUTORIAL, *PLANNED):
        compare(work, compute, options.rounds, options.seconds, torch.cuda.synchronize)


if __name__ == "__main__":
    main()
