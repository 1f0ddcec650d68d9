"""Training speed in characters per second of complete steps: charwright, PyTorch's own layers, and TensorFlow.

    python benchmarks/training.py                      # all workloads, PyTorch as the peer
    python benchmarks/training.py --only tutorial      # some of them
    python benchmarks/training.py --tensorflow         # TensorFlow too, in its own environment (.peers/)

Both sides do the same work in turn, A B A B, in one run; a ratio is the median of the pairs, with minimum and maximum.
A step is complete: batch to the device, forward, loss, backward, Adam.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import charwright as cw
from charwright.data.sequences import Windows
from charwright.model.compute import Compute, keep_memory
from charwright.training.loop import train_step
from machine import TENSORFLOW, describe_machine, ratio_and_spread, tensorflow_python


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
    bf16: bool = True
    target: float = 0.0

    @property
    def characters(self) -> int:
        """Characters in a step."""
        return self.batch * self.seq_length

    @property
    def recurrent_operations(self) -> int:
        """Additions and multiplications per character in the recurrent products: forward, backward and gradient."""
        gates = {"gru": 3, "lstm": 4, "rnn": 1}[self.cell]
        return 6 * gates * self.units**2 * self.layers


WORKS = (
    Work("tutorial", 1024, 256, 64, 100, target=1.75),
    Work("tutorial-f32", 1024, 256, 64, 100, bf16=False, target=1.55),
    Work("gru-512", 512, 128, 32, 64, target=2.2),
    Work("lstm-1024", 1024, 256, 64, 100, cell="lstm", target=1.4),
    Work("lstm-512", 512, 128, 32, 64, cell="lstm", target=1.4),
    Work("two-layers-256", 256, 128, 16, 128, layers=2, target=2.5),
    Work("chinese-512", 512, 128, 32, 64, vocabulary=6000, target=2.0),
)


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


def ours(work: Work) -> Callable[[], None]:
    """One step of charwright."""
    shape = cw.ModelConfig(cell=work.cell, layers=work.layers, units=work.units, embedding_size=work.embedding)
    model = cw.LanguageModel(
        shape, work.vocabulary, compute=Compute(precision=torch.bfloat16 if work.bf16 else torch.float32)
    )
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    following = batches(work)

    def step() -> None:
        inputs, targets = following()
        train_step(model, cw.Batch(inputs, targets, None, torch.Generator()), optimizer)

    return step


def theirs(work: Work) -> Callable[[], None]:
    """One step of PyTorch's own layers, with the same optimizer."""
    model = PeerModel(work)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    following = batches(work)

    def step() -> None:
        inputs, targets = following()
        with torch.autocast("cpu", torch.bfloat16, enabled=work.bf16):
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


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


def compare(work: Work, rounds: int, seconds: float) -> None:
    """Measure both sides in turn and print a row."""
    mine, peer = ours(work), theirs(work)
    speeds: tuple[list[float], list[float], list[float]] = ([], [], [])
    for step in (mine, mine, peer, peer):
        step()
    for _ in range(rounds):
        speeds[0].append(speed(mine, work, seconds))
        speeds[1].append(speed(peer, work, seconds))
        speeds[2].append(product_peak(torch.bfloat16 if work.bf16 else torch.float32, seconds / 8))
    ratio, least, most = ratio_and_spread(speeds[0], speeds[1])
    share = statistics.median(s * work.recurrent_operations / p for s, p in zip(speeds[0], speeds[2], strict=True))
    print(
        f"| {work.name} | {statistics.median(speeds[0]):,.0f} | {statistics.median(speeds[1]):,.0f} "
        f"| {ratio:.2f} ({least:.2f} to {most:.2f}) | {work.target or ''} | {share:.0%} |",
        flush=True,
    )


def compare_threads(rounds: int, seconds: float) -> None:
    """All threads against one, charwright alone."""
    all_threads = torch.get_num_threads()
    for work in (WORKS[0], WORKS[2], WORKS[3]):
        step = ours(work)
        step()
        speeds: dict[int, list[float]] = {1: [], all_threads: []}
        for _ in range(rounds):
            for threads, found in speeds.items():
                torch.set_num_threads(threads)
                found.append(speed(step, work, seconds))
        torch.set_num_threads(all_threads)
        ratio, least, most = ratio_and_spread(speeds[all_threads], speeds[1])
        print(f"{work.name}: {all_threads} threads against 1: {ratio:.2f} ({least:.2f} to {most:.2f})", flush=True)


def memory(side: str) -> None:
    """In its own process: the peak memory of the tutorial's step, minus the memory after the imports, in MB."""
    keep_memory()
    before = _memory_mb("VmRSS")
    step = {"ours": ours, "theirs": theirs}[side](WORKS[0])
    for _ in range(4):
        step()
    print(f"{_memory_mb('VmHWM') - before:.0f}")


def _memory_mb(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process, which unlike getrusage does not include the parent's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field + ":")]
    return int(line.split()[1]) / 1024


def compare_memory() -> None:
    """Compare peak memory, each side in its own process."""
    found = {
        side: float(subprocess.check_output([sys.executable, __file__, "--memory", side], text=True))
        for side in ("ours", "theirs")
    }
    print(f"memory of the tutorial's step: {found['ours']:.0f} MB, nn.GRU's {found['theirs']:.0f} MB, ", end="")
    print(f"ratio {found['ours'] / found['theirs']:.2f}", flush=True)


def compare_tensorflow(rounds: int, seconds: float, folder: Path) -> None:
    """Compare with TensorFlow's `fit` on the tutorial's model, in its own process, in turn with ours."""
    script = Path(__file__).with_name("peer_tensorflow.py")
    command = [str(tensorflow_python(folder)), str(script), json.dumps({"seconds": seconds})]
    peer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdout.readline()  # It is built and warmed up.
    step = ours(WORKS[0])
    step()
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        speeds[0].append(speed(step, WORKS[0], seconds))
        peer.stdin.write("go\n")
        peer.stdin.flush()
        speeds[1].append(float(peer.stdout.readline()))
    peer.kill()
    ratio, least, most = ratio_and_spread(*speeds)
    print(
        f"tutorial against {TENSORFLOW} fit, float32: {statistics.median(speeds[0]):,.0f} and "
        f"{statistics.median(speeds[1]):,.0f} characters/s, ratio {ratio:.2f} ({least:.2f} to {most:.2f})",
        flush=True,
    )


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of workloads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per side and round")
    parser.add_argument("--tensorflow", action="store_true")
    parser.add_argument("--peers", type=Path, default=Path(".peers/tensorflow"), help="environment of TensorFlow")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
        return
    if options.row:
        keep_memory()
        compare(next(work for work in WORKS if work.name == options.row), options.rounds, options.seconds)
        return
    keep_memory()  # As `fit` does; the peer in this process benefits too.
    print(describe_machine())
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| workload | charwright, characters/s | nn.GRU / nn.LSTM | ratio | target | share of product peak |")
    print("|---|---|---|---|---|---|")
    for work in WORKS:
        if options.only and work.name not in options.only:
            continue
        # Each in its own process, like a training run: memory left by one workload would slow the next.
        settings = ["--rounds", str(options.rounds), "--seconds", str(options.seconds)]
        subprocess.check_call([sys.executable, __file__, "--row", work.name, *settings])
    print()
    if options.tensorflow:
        compare_tensorflow(options.rounds, options.seconds, options.peers)
    if not options.only:
        compare_threads(options.rounds, options.seconds)
        compare_memory()


if __name__ == "__main__":
    main()
