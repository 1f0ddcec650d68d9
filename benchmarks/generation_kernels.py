"""Generation speed of two builds of the C kernels, or of two of their variants, in turn: what a change to them gains.

    cmake -S OTHER_CHECKOUT -B /tmp/other && cmake --build /tmp/other
    python benchmarks/generation_kernels.py /tmp/other/charwright_kernels.so
    python benchmarks/generation_kernels.py /tmp/other/charwright_kernels.so --variants avx2 --units 512 --threads 2
    python benchmarks/generation_kernels.py --variants amx --over avx512vnni

Each measurement is a process of its own with random weights of a GRU; the two sides take turns, and the order changes
from round to round. A figure is the median of the rounds in characters per second, and a ratio the median of the ratios
of one round, with minimum and maximum. Both builds must belong to the same version of the Python code.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from charwright import kernels
from charwright.config import ModelConfig
from generation import our_generator, our_speed, random_model
from machine import describe_machine

LENGTH = 250


def measure(units: int, texts: int, precision: str, threads: int, seconds: float) -> float:
    """Characters per second with the kernels that this process loads."""
    model = random_model(ModelConfig(cell="gru", units=units, embedding_size=128))
    generator = our_generator(model, precision, threads)
    our_speed(generator, model.prompt, texts, LENGTH, seconds / 4)
    return our_speed(generator, model.prompt, texts, LENGTH, seconds)


@dataclass(frozen=True)
class Side:
    """One side of the comparison: a build of the kernels (None: the installed one) and a variant."""

    library: Path | None
    variant: str


def measure_apart(side: Side, words: list[str]) -> float:
    """Characters per second in a process of its own, which loads this side's library."""
    environment = {**os.environ, "CHARWRIGHT_KERNELS": side.variant}
    if side.library is not None:
        environment["CHARWRIGHT_KERNELS_LIBRARY"] = str(side.library.resolve())
    command = [sys.executable, __file__, "--measure", *words]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="the library of the other build")
    parser.add_argument("--variants", nargs="+", default=kernels.available()[:1], metavar="VARIANT")
    parser.add_argument("--over", metavar="VARIANT", help="variant of the other side; the same unless given")
    parser.add_argument("--precisions", nargs="+", default=["q8"], metavar="PRECISION")
    parser.add_argument("--units", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--texts", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument(
        "--measure", nargs=5, metavar=("UNITS", "TEXTS", "PRECISION", "THREADS", "SECONDS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.measure:
        units, texts, precision, threads, seconds = options.measure
        print(measure(int(units), int(texts), precision, int(threads), float(seconds)))
        return
    if options.other is None and options.over is None:
        parser.error("name the library of the other build, or a variant with --over")
    theirs = options.over or "other build"
    print(f"{describe_machine()}\n{options.threads} threads\n")
    print(f"| kernels | precision | units | texts | {theirs} | these | ratio |\n|---|---|---|---|---|---|---|")
    for shape in product(options.variants, options.precisions, options.units, options.texts):
        variant, *rest = map(str, shape)
        words = [rest[1], rest[2], rest[0], str(options.threads), str(options.seconds)]
        sides = Side(options.other, options.over or variant), Side(None, variant)
        found: tuple[list[float], list[float]] = [], []
        for number in range(options.rounds):
            for index in (0, 1)[:: -1 if number % 2 else 1]:
                found[index].append(measure_apart(sides[index], words))
        ratios = [ours / other for other, ours in zip(*found, strict=True)]
        speeds = " | ".join(f"{statistics.median(speeds):,.0f}" for speeds in found)
        print(
            f"| {' | '.join([variant, *rest])} | {speeds} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
