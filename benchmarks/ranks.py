"""Several ranks against several threads, and what several machines would bring.

    python benchmarks/ranks.py                    # 2 ranks of 1 thread against 1 process of 2 threads, in turn
    python benchmarks/ranks.py --units 1024       # for another width
    python benchmarks/ranks.py --rounds 9 --seconds 8

Both sides train with `fit` on the same batches of 32 x 64 characters: batch, forward, loss, backward, clipping, AdamW
and, between ranks, the sum of the gradients. They run in turn, A B A B; the ratio is the median of the pairs, with
minimum and maximum. The ranks of one machine add up their gradients in shared memory; the sum over loopback, as between
machines, is then timed alone. `gradient_sums.py` compares the two.

The second table is computed, not measured. A step on N machines takes the measured time of one machine for its rows,
plus the measured time of the sum over loopback (copies and additions), plus the time on the wire: in a ring each
machine sends 2 (N - 1) / N times the gradients, in 2 (N - 1) messages one after the other, at 94 % of the nominal rate;
the agreement on the clock adds as many short messages. Nothing overlaps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import charwright as cw
from charwright.data.sequences import Windows
from charwright.model.compute import Compute, keep_memory
from charwright.training.events import Step
from charwright.training.loop import fit
from charwright.training.ranks import ALONE, Ranks, join
from machine import describe_machine, ratio_and_spread

ROWS, LENGTH, VOCABULARY = 32, 64, 66
MACHINES = (2, 4, 8)
NETWORKS = {"1 Gbit/s": (1e9, 1e-4), "10 Gbit/s": (1e10, 5e-5)}
"""Bits per second, and seconds of a message however short."""
RATE = 0.94  # of the nominal rate, after the headers of Ethernet, IP and TCP
EVERY = 5  # steps between readings of the clock


def make_model(units: int) -> cw.LanguageModel:
    shape = cw.ModelConfig(cell="gru", layers=1, units=units, embedding_size=units // 4)
    return cw.LanguageModel(shape, VOCABULARY, compute=Compute.choose(device="cpu"))


def make_dataset(rows: int) -> Windows:
    draws = np.random.Generator(np.random.Philox(1)).zipf(1.3, size=40 * rows * LENGTH)
    return Windows((draws % VOCABULARY).astype(np.int32), LENGTH, rows)


def speed(units: int, rows: int, seconds: float, ranks: Ranks) -> float:
    """Characters per second of `fit` over at least `seconds`, after the first steps."""
    dataset = make_dataset(rows)
    config = cw.TrainingConfig(steps=10**9, log_every=EVERY, warmup=0, learning_rate=1e-3)
    times: list[float] = []
    stop: Callable[[], str | None] = lambda: "done" if times and times[-1] - times[0] > seconds else None  # noqa: E731
    for event in fit(make_model(units), dataset, config, ranks=ranks, should_stop=stop):
        if isinstance(event, Step) and event.step > 2 * EVERY:
            times.append(time.perf_counter())
    return (len(times) - 1) * EVERY * rows * LENGTH / (times[-1] - times[0])


def sum_s(units: int, seconds: float, ranks: Ranks) -> tuple[float, int]:
    """The median time of the sum of a model's gradients over the ranks, and their bytes."""
    gradients = torch.zeros(sum(weight.numel() for weight in make_model(units).parameters()))
    times: list[float] = []
    for _ in range(max(10, int(100 * seconds))):
        began = time.perf_counter()
        ranks.sum(gradients)
        times.append(time.perf_counter() - began)
    return statistics.median(times), 4 * gradients.numel()


def work(options: argparse.Namespace) -> None:
    """One measurement, in a process of its own or on one rank; rank 0 prints it."""
    keep_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    ranks = join(os.environ) if options.side != "threads" else ALONE
    if options.side == "sum":
        found: object = sum_s(options.units, options.seconds, ranks)
    else:
        found = speed(options.units, options.rows, options.seconds, ranks)
    if ranks.rank == 0:
        print("found", json.dumps(found), flush=True)
    ranks.leave()


def measured(side: str, options: argparse.Namespace, *, rows: int = ROWS, threads: int) -> object:
    """What a process, or a group of ranks, has found."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
    command = [sys.executable, *([] if side == "threads" else torchrun), __file__, "--side", side, "--rows", str(rows)]
    command += ["--units", str(options.units), "--seconds", str(options.seconds), "--threads", str(threads)]
    environment = os.environ | ({} if side == "threads" else {"OMP_NUM_THREADS": str(threads)})
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    [line] = [line for line in output.splitlines() if line.startswith("found ")]
    return json.loads(line.removeprefix("found "))


def wire_s(machines: int, size_bytes: float, rate: float, message_s: float) -> float:
    """Seconds on the wire of one step: the sum of the gradients, and the agreement on the clock."""
    hops = 2 * (machines - 1)
    return hops / machines * 8 * size_bytes / (RATE * rate) + 2 * hops * message_s


def print_efficiency(step_s: dict[int, float], sum_took_s: float, size_bytes: int) -> None:
    """The computed table; `step_s` has the seconds of a step on one machine by its number of rows."""
    print("| machines | network | the same batch of 32 rows | 32 rows on each machine |")
    print("|---|---|---|---|")
    for machines in MACHINES:
        for network, (rate, message_s) in NETWORKS.items():
            more_s = sum_took_s + wire_s(machines, size_bytes, rate, message_s)
            same = step_s[ROWS] / machines / (step_s[ROWS // machines] + more_s)
            each = step_s[ROWS] / (step_s[ROWS] + more_s)
            print(f"| {machines} | {network} | {_gain(machines, same)} | {_gain(machines, each)} |")


def _gain(machines: int, efficiency: float) -> str:
    return f"{efficiency:.0%} ({machines * efficiency:.1f} times)"


def print_all(options: argparse.Namespace) -> None:
    print(describe_machine())
    print(f"PyTorch {torch.__version__}, GRU {options.units}, batches of {ROWS} x {LENGTH}\n")
    cores = options.ranks
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        speeds[0].append(float(str(measured("ranks", options, threads=1))))
        speeds[1].append(float(str(measured("threads", options, threads=cores))))
    ratio, least, most = ratio_and_spread(*speeds)
    print(f"| {cores} ranks of 1 thread, characters/s | 1 process of {cores} threads | ratio |")
    print("|---|---|---|")
    print(f"| {statistics.median(speeds[0]):,.0f} | {statistics.median(speeds[1]):,.0f} ", end="")
    print(f"| {ratio:.2f} ({least:.2f} to {most:.2f}) |\n", flush=True)
    took: object = measured("sum", options, threads=1)
    assert isinstance(took, list)
    print(f"{took[1]:,} bytes of gradients per step; their sum over {cores} ranks takes {1e3 * took[0]:.1f} ms")
    step_s = {ROWS: ROWS * LENGTH / statistics.median(speeds[1])}
    for machines in MACHINES:
        rows = ROWS // machines
        found = [float(str(measured("threads", options, rows=rows, threads=cores))) for _ in range(3)]
        step_s[rows] = rows * LENGTH / statistics.median(found)
    shown = ", ".join(f"{1e3 * seconds:.1f} ms with {rows} rows" for rows, seconds in sorted(step_s.items()))
    print(f"a step of one machine takes {shown}\n")
    print_efficiency(step_s, took[0], took[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ranks", type=int, default=2, help="ranks of one side and threads of the other")
    for hidden, kind in (("--side", str), ("--rows", int), ("--threads", int)):
        parser.add_argument(hidden, type=kind, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    work(options) if options.side else print_all(options)


if __name__ == "__main__":
    main()
