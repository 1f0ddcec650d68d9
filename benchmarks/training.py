"""Training speed in characters per second of complete steps: charwright, PyTorch's own layers, and TensorFlow.

    python benchmarks/training.py                      # all workloads, PyTorch as the peer
    python benchmarks/training.py --only tutorial      # some of them
    python benchmarks/training.py --precision f32      # the type of the products, on both sides
    python benchmarks/training.py --isa avx2           # as on a processor that has no more than AVX2
    python benchmarks/training.py --tensorflow         # TensorFlow too, in its own environment (.peers/)

Both sides do the same work in turn, A B A B, in one run; a ratio is the median of the pairs, with minimum and maximum.
A step is complete: batch to the device, forward, loss, backward, Adam. Everything runs on the CPU.

`--precision auto`, the default, gives each side its best: charwright computes in the type that it chooses on this
machine, and the peer in the faster of float32 and bfloat16 (autocast) for that work, which is measured first. Both are
in the row. `f32` and `bf16` are for both sides; `tutorial-f32` is always in float32.

`--isa` tells of other processors: avx2, avx512, avx512bf16 or amx, of those that this one runs. Everything is repeated
in processes whose environment limits both sides before they start: CHARWRIGHT_KERNELS selects our kernels,
ATEN_CPU_CAPABILITY PyTorch's own, ONEDNN_MAX_CPU_ISA those of oneDNN (its bfloat16 products, and TensorFlow's), and
MKL_ENABLE_INSTRUCTIONS those of MKL, which multiplies float32 for PyTorch and ignores the other variables. Processors
with no more than avx2 or avx512 have no fast bfloat16, so those rows are in float32. Clock speeds, caches and memory
remain those of this machine.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import charwright as cw
from charwright import kernels
from charwright.config import PRODUCTS
from charwright.data.sequences import Windows
from charwright.model.compute import Compute, keep_memory
from charwright.training.loop import train_step
from charwright.training.optimizer import make_optimizer
from machine import TENSORFLOW, describe_machine, ratio_and_spread, tensorflow_python

PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Limit:
    """The environment of a process that uses no more than one instruction set."""

    aten: str
    onednn: str
    mkl: str
    fast_bf16: bool

    def environment(self, name: str) -> dict[str, str]:
        """The present environment with the limits; `name` is the variant of our kernels."""
        return os.environ | {
            "CHARWRIGHT_KERNELS": name,
            "ATEN_CPU_CAPABILITY": self.aten,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
        }


LIMITS = {
    "avx2": Limit("avx2", "AVX2", "AVX2", fast_bf16=False),
    "avx512": Limit("avx512", "AVX512_CORE", "AVX512", fast_bf16=False),
    "avx512bf16": Limit("avx512", "AVX512_CORE_BF16", "AVX512", fast_bf16=True),
    "amx": Limit("avx512", "AVX512_CORE_AMX", "AVX512", fast_bf16=True),
}


@dataclass(frozen=True)
class Work:
    """A model and a batch."""

    name: str
    units: int
    embedding: int
    batch: int
    seq_length: int
    vocabulary: int = 66
    cell: str = "gru"
    layers: int = 1
    precision: str | None = None  # for both sides; None is that of the command line

    @property
    def characters(self) -> int:
        """Characters in a step."""
        return self.batch * self.seq_length

    @property
    def recurrent_operations(self) -> int:
        """Additions and multiplications per character in the recurrent products: forward, backward and gradient."""
        return 6 * PRODUCTS[self.cell] * self.units**2 * self.layers


WORKS = {
    work.name: work
    for work in (
        Work("tutorial", 1024, 256, 64, 100),
        Work("tutorial-f32", 1024, 256, 64, 100, precision="f32"),
        Work("gru-512", 512, 128, 32, 64),
        Work("gru-384", 384, 128, 32, 64),
        Work("lstm-1024", 1024, 256, 64, 100, cell="lstm"),
        Work("lstm-512", 512, 128, 32, 64, cell="lstm"),
        Work("two-layers-256", 256, 128, 16, 128, layers=2),
        Work("chinese-512", 512, 128, 32, 64, vocabulary=6000),
    )
}
TUTORIAL = WORKS["tutorial"]
BY_THREADS = ("tutorial", "gru-512", "lstm-512", "lstm-1024")


class PeerModel(nn.Module):
    """The same model from PyTorch's own layers."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[work.cell]
        self.embedding = nn.Embedding(work.vocabulary, work.embedding)
        self.recurrent = kind(work.embedding, work.units, work.layers)
        self.head = nn.Linear(work.units, work.vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (T, B, V)."""
        return self.head(self.recurrent(self.embedding(ids))[0])


def batches(work: Work) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Batches of random ids with a skewed frequency distribution, as in real text."""
    draws = np.random.Generator(np.random.Philox(1)).zipf(1.3, size=40 * work.characters)
    windows = Windows((draws % work.vocabulary).astype(np.int32), work.seq_length, work.batch)
    epochs = (pair for epoch in range(10**9) for pair in windows.batches(epoch))

    def following() -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = next(epochs)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    return following


def our_precision(asked: str) -> str:
    """`auto` is what charwright chooses on this machine's CPU."""
    chosen = Compute.choose(device="cpu", precision=asked).precision
    return next(name for name, dtype in PRECISIONS.items() if dtype == chosen)


def ours(work: Work, precision: str) -> Callable[[], None]:
    """One step of charwright."""
    shape = cw.ModelConfig(cell=work.cell, layers=work.layers, units=work.units, embedding_size=work.embedding)
    model = cw.LanguageModel(shape, work.vocabulary, compute=Compute(precision=PRECISIONS[precision]))
    model.train()
    optimizer = make_optimizer(model, cw.TrainingConfig(optimizer="adam", learning_rate=1e-3))
    following = batches(work)

    def step() -> None:
        inputs, targets = following()
        train_step(model, cw.Batch(inputs, targets, None, torch.Generator()), optimizer)

    return step


def theirs(work: Work, precision: str) -> Callable[[], None]:
    """One step of PyTorch's own layers, with its fused Adam."""
    model = PeerModel(work)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    following = batches(work)

    def step() -> None:
        inputs, targets = following()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def fastest_peer(work: Work, seconds: float) -> str:
    """The precision in which the peer is faster: two short measurements of each in turn, after one step.

    Some processors lack one: with no more than AVX2, oneDNN has no LSTM of 1024 units in bfloat16, and raises.
    """
    steps = {}
    for precision in PRECISIONS:
        step = theirs(work, precision)
        with suppress(RuntimeError):
            step()
            steps[precision] = step
    found = dict.fromkeys(steps, 0.0)
    for _ in range(2):
        for precision, step in steps.items():
            found[precision] = max(found[precision], speed(step, work, seconds))
    return max(found, key=lambda precision: found[precision])


def speed(step: Callable[[], None], work: Work, seconds: float) -> float:
    """Characters per second over at least `seconds`."""
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or count < 2:
        step()
        count += 1
    return count * work.characters / spent


def product_peak(dtype: torch.dtype, seconds: float) -> float:
    """Operations per second of a 2048^3 matrix product."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    times = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 5:
        at = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - at)
    return 2 * 2048**3 / statistics.median(times)


def compare(work: Work, asked: str, label: str, rounds: int, seconds: float) -> None:
    """Measure both sides in turn and print a row."""
    asked = work.precision or asked
    precision = our_precision(asked)
    peer_precision = fastest_peer(work, seconds / 4) if asked == "auto" else asked
    mine, peer = ours(work, precision), theirs(work, peer_precision)
    speeds: tuple[list[float], list[float], list[float]] = ([], [], [])
    for step in (mine, mine, peer, peer):
        step()
    for _ in range(rounds):
        speeds[0].append(speed(mine, work, seconds))
        speeds[1].append(speed(peer, work, seconds))
        speeds[2].append(product_peak(PRECISIONS[precision], seconds / 8))
    ratio, least, most = ratio_and_spread(speeds[0], speeds[1])
    share = statistics.median(s * work.recurrent_operations / p for s, p in zip(speeds[0], speeds[2], strict=True))
    print(
        f"| {label} | {statistics.median(speeds[0]):,.0f} ({precision}) | {statistics.median(speeds[1]):,.0f} "
        f"({peer_precision}) | {ratio:.2f} ({least:.2f} to {most:.2f}) | {share:.0%} |",
        flush=True,
    )


def compare_threads(work: Work, asked: str, rounds: int, seconds: float) -> None:
    """All threads against one, charwright alone."""
    step, all_threads = ours(work, our_precision(asked)), torch.get_num_threads()
    for _ in range(2):
        step()
    speeds: dict[int, list[float]] = {1: [], all_threads: []}
    for _ in range(rounds):
        for threads, found in speeds.items():
            torch.set_num_threads(threads)
            step()  # The caches of the cores are another thread's.
            found.append(speed(step, work, seconds))
    ratio, least, most = ratio_and_spread(speeds[all_threads], speeds[1])
    print(f"{work.name}: {all_threads} threads against 1: {ratio:.2f} ({least:.2f} to {most:.2f})", flush=True)


def memory(side: str, asked: str) -> None:
    """In its own process: the peak memory of the tutorial's step, minus the memory after the imports, in MB."""
    keep_memory()
    before = _memory_mb("VmRSS")
    step = {"ours": ours, "theirs": theirs}[side](TUTORIAL, our_precision(asked))
    for _ in range(4):
        step()
    print(f"{_memory_mb('VmHWM') - before:.0f}")


def _memory_mb(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process, which unlike getrusage does not include the parent's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field + ":")]
    return int(line.split()[1]) / 1024


def compare_memory(asked: str) -> None:
    """Compare peak memory in one precision, each side in its own process."""
    settings = ["--precision", asked]
    found = {
        side: float(subprocess.check_output([sys.executable, __file__, "--memory", side, *settings], text=True))
        for side in ("ours", "theirs")
    }
    print(f"memory of the tutorial's step in {our_precision(asked)}: {found['ours']:.0f} MB, ", end="")
    print(f"nn.GRU's {found['theirs']:.0f} MB, ratio {found['ours'] / found['theirs']:.2f}", flush=True)


def compare_tensorflow(asked: str, rounds: int, seconds: float, folder: Path) -> None:
    """Compare with TensorFlow's `fit` on the tutorial's model, in its own process, in turn with ours."""
    script = Path(__file__).with_name("peer_tensorflow.py")
    command = [str(tensorflow_python(folder)), str(script), json.dumps({"seconds": seconds})]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert peer.stdin is not None
    assert peer.stdout is not None
    if peer.stdout.readline() != "ready\n":  # It is built and warmed up.
        fail(f"TensorFlow ended:\n{peer.communicate()[1][-2000:]}")
    step = ours(TUTORIAL, our_precision(asked))
    step()
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        speeds[0].append(speed(step, TUTORIAL, seconds))
        peer.stdin.write("go\n")
        peer.stdin.flush()
        speeds[1].append(float(peer.stdout.readline()))
    peer.kill()
    ratio, least, most = ratio_and_spread(*speeds)
    print(
        f"tutorial in {our_precision(asked)} against {TENSORFLOW} fit in f32: {statistics.median(speeds[0]):,.0f} "
        f"and {statistics.median(speeds[1]):,.0f} characters/s, ratio {ratio:.2f} ({least:.2f} to {most:.2f})",
        flush=True,
    )


def limit(options: argparse.Namespace) -> None:
    """Run this program again with an instruction set for both sides, and exit as it does."""
    known = [name for name in LIMITS if name in kernels.available()]
    if options.isa not in known:
        fail(f"--isa {options.isa}: this machine runs {', '.join(known) or 'none of ' + ', '.join(LIMITS)}")
    limits = LIMITS[options.isa]
    if not limits.fast_bf16 and options.precision == "bf16":
        fail(f"--isa {options.isa}: such processors have no fast bfloat16; leave out --precision")
    # Libraries read these variables when they are loaded, which has happened in this process.
    command = [sys.executable, __file__, *sys.argv[1:], "--limited", options.isa]
    command += [] if limits.fast_bf16 else ["--precision", "f32"]
    sys.exit(subprocess.call(command, env=limits.environment(options.isa)))


def fail(line: str) -> NoReturn:
    """Say what is wrong with the command line, and exit."""
    print(line, file=sys.stderr)
    sys.exit(2)


def print_tables(options: argparse.Namespace) -> None:
    """Measure each workload in its own process, and the rest in this one."""
    keep_memory()  # As `fit` does; the peer in this process benefits too.
    loaded = kernels.load()
    print(describe_machine())
    print(f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), ", end="")
    print(f"kernels {loaded.name if loaded else 'none'}, {torch.get_num_threads()} threads")
    print(f"both sides limited to {options.limited}\n" if options.limited else "")
    print("| workload | charwright, characters/s | nn.GRU / nn.LSTM | ratio | share of product peak |")
    print("|---|---|---|---|---|", flush=True)
    common = ["--precision", options.precision, "--rounds", str(options.rounds), "--seconds", str(options.seconds)]
    for work in WORKS.values():
        if options.only and work.name not in options.only:
            continue
        label = work.name
        if options.limited and not LIMITS[options.limited].fast_bf16:
            if work.precision == "f32":
                continue  # The row without `-f32` is the same here.
            label += ", f32"
        # Like a training run: memory left by one workload would slow the next.
        subprocess.check_call([sys.executable, __file__, "--row", work.name, "--label", label, *common])
    print()
    if options.tensorflow:
        compare_tensorflow(options.precision, options.rounds, options.seconds, options.peers)
    if not options.only:
        for name in BY_THREADS:
            subprocess.check_call([sys.executable, __file__, "--threads-of", name, *common])
        compare_memory(options.precision)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of workloads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per side and round")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="type of the products")
    parser.add_argument("--isa", metavar="NAME", help=f"limit both sides to {', '.join(LIMITS)}")
    parser.add_argument("--tensorflow", action="store_true")
    parser.add_argument("--peers", type=Path, default=Path(".peers/tensorflow"), help="environment of TensorFlow")
    parser.add_argument("--limited", choices=tuple(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--threads-of", metavar="NAME", choices=WORKS, help="only a workload's speed by threads")
    parser.add_argument("--label", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.isa and not options.limited:
        limit(options)
    elif options.memory:
        memory(options.memory, options.precision)
    elif options.threads_of:
        keep_memory()
        compare_threads(WORKS[options.threads_of], options.precision, options.rounds, options.seconds)
    elif options.row:
        keep_memory()
        compare(WORKS[options.row], options.precision, options.label, options.rounds, options.seconds)
    else:
        print_tables(options)


if __name__ == "__main__":
    main()
