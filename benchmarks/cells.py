"""What a cell costs: characters per second of a GRU and of one whose reset gate reads the input alone (`igru`).

    python benchmarks/cells.py                             # training, and generation in each precision
    python benchmarks/cells.py --units 512 --threads 1

Both have as many units, embeddings of 128 and a vocabulary of 66, and the rest of a plan: a multiplicative layer,
n-grams, and in training dropout and recurrent dropout. They take turns in one run; a ratio is the median of the rounds'
ratios, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

import charwright as cw
from charwright.config import ModelConfig
from charwright.model.compute import Compute, keep_memory
from charwright.training.loop import train_step
from charwright.training.optimizer import make_optimizer
from generation import PRECISIONS, PROMPT, our_generator, our_speed, random_model
from machine import describe_machine, ratio_and_spread, take_turns
from training import Work, batches, speed

CELLS = ("gru", "igru")
UNITS = (320, 512, 1024)
STREAMS = (1, 64)
LENGTH = 500


def planned(cell: str, units: int, *, dropout: float = 0.0) -> ModelConfig:
    """The network of a plan."""
    return ModelConfig(
        cell=cell, units=units, multiplicative=True, ngram_bits=20, ngram_order=8, dropout=dropout,
        recurrent_dropout=dropout,
    )  # fmt: skip


def training(cell: str, units: int) -> Callable[[float], float]:
    """Characters per second of whole steps of 32 x 64, as a function of the time to measure."""
    work = Work("planned", units, embedding=128, batch=32, seq_length=64, cell=cell)
    model = cw.LanguageModel(planned(cell, units, dropout=0.1), work.vocabulary, compute=Compute.choose(device="cpu"))
    model.train()
    optimizer = make_optimizer(model, cw.TrainingConfig(optimizer="cautious-adamw", ngram_rate=0.12))
    following, generator = batches(work), torch.Generator().manual_seed(1)

    def step() -> None:
        inputs, targets = following()
        train_step(model, cw.Batch(inputs, targets, None, generator), optimizer)

    return lambda seconds: speed(step, work, seconds)


def generation(cell: str, units: int, precision: str, streams: int, threads: int) -> Callable[[float], float]:
    """Characters per second of generated text, all streams together, as a function of the time to measure."""
    generator = our_generator(random_model(planned(cell, units)), precision, threads)
    return lambda seconds: our_speed(generator, PROMPT, streams, LENGTH, seconds)


def compare(label: str, sides: Sequence[Callable[[float], float]], rounds: int, seconds: float) -> None:
    """Measure both cells in turn and print a row."""
    speeds = take_turns(dict(zip(CELLS, sides, strict=True)), rounds, seconds)
    ratio, least, most = ratio_and_spread(speeds["igru"], speeds["gru"])
    gru, igru = map(statistics.median, speeds.values())
    print(f"| {label} | {gru:,.0f} | {igru:,.0f} | {ratio:.2f} ({least:.2f} to {most:.2f}) |", flush=True)


def main() -> None:
    """Print a row for each width and use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", nargs="*", type=int, default=UNITS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.8, help="per side and round")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    print(f"{describe_machine()}\n{options.threads} threads\n")
    print("| work | gru, characters/s | igru | ratio |\n|---|---|---|---|")
    for units in options.units:
        measured = partial(compare, rounds=options.rounds, seconds=options.seconds)
        measured(f"training, {units} units", [training(cell, units) for cell in CELLS])
        for precision in PRECISIONS:
            for streams in STREAMS:
                sides = [generation(cell, units, precision, streams, options.threads) for cell in CELLS]
                texts = "1 text" if streams == 1 else f"{streams} texts"
                measured(f"generation, {units} units, {precision}, {texts}", sides)


if __name__ == "__main__":
    main()
