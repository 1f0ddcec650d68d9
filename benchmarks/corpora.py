"""Large texts: how fast they are prepared, how soon training starts, and how fast it reads the map.

    python benchmarks/corpora.py [--gigabytes 2] [--rounds 5] [--folder FOLDER] [--only PART]

Makes its texts in a folder, by default a temporary one (8 GB of disk for 2 GB of text): ASCII, English with typographic
quotes, Chinese, and ASCII compressed. A folder that has them already is used again. Each figure comes from a process of
its own:

- prepared: from the call to the complete text in the cache, flushed to the disk, in MB of UTF-8 per second;
- start again: the time that the imports of Python, PyTorch and charwright take; from their end to the end of the first
  step; and from the start of the process to the end of the first step;
- peaks of memory: above that at the end of the imports, in preparation, and in a training of two steps with validation
  and checkpoint;
- training from the map against from memory: steps per second on the same text, in turn.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe_machine, ratio_and_spread

BLOCK = 1 << 24
TRAINED_MB = 200  # of the text in memory, for the comparison of speeds
STEPS, WARM_UP = 150, 30
OPTIONS = {"units": 512, "embedding_size": 64, "val_fraction": 0.001}


def ascii_block(generator: np.random.Generator) -> bytes:
    """Words of a made-up language, in lines of about 80 characters."""
    words = ["".join(map(chr, generator.integers(97, 123, generator.integers(2, 10)))) for _ in range(5000)]
    drawn = [words[i] for i in np.minimum(generator.zipf(1.3, BLOCK // 5), 4999)]
    lines = (" ".join(drawn[at : at + 14]).capitalize() + ".\n" for at in range(0, len(drawn), 14))
    return "".join(lines).encode()[:BLOCK]


def quoted_block(plain: bytes) -> bytes:
    """The same words with a quotation in each line: a few characters are not ASCII."""
    return plain.replace(b".\n", "\u201d \u2013 so be it.\n".encode())


def chinese_block(generator: np.random.Generator) -> bytes:
    """Some six thousand characters in Zipf's proportions, in lines of 40."""
    drawn = "".join(chr(0x4E00 + int(i)) for i in np.minimum(generator.zipf(1.2, BLOCK // 3), 6000))
    return "".join(drawn[at : at + 40] + "\n" for at in range(0, len(drawn), 40)).encode()


def blocks(block: bytes, size: int) -> Iterator[bytes]:
    """Copies of a block that begin at different lines, about `size` bytes in all."""
    for number in range(max(1, size // len(block))):
        cut = block.find(b"\n", number * 7919 % len(block)) + 1
        yield block[cut:] + block[:cut]


def write_texts(folder: Path, size: int) -> dict[str, Path]:
    paths = {"ASCII": folder / "ascii.txt", "quotes": folder / "quotes.txt", "Chinese": folder / "chinese.txt"}
    paths["gzip"] = folder / "zipped.txt.gz"
    if all(path.is_file() for path in paths.values()):
        return paths
    generator = np.random.default_rng(1)
    plain, chinese = ascii_block(generator), chinese_block(generator)
    for name, block in (("ASCII", plain), ("quotes", quoted_block(plain)), ("Chinese", chinese)):
        with paths[name].open("wb") as file:
            file.writelines(blocks(block, size))
    with gzip.open(paths["gzip"], "wb", compresslevel=6) as zipped:
        for part in blocks(plain, size // 4):  # Compressing takes longer than anything that is measured.
            zipped.write(part)
    return paths


def child(text: str, cache: str, what: str) -> dict[str, Any]:
    """Prepare a text, or train on it from the map or from memory; runs in a process of its own."""
    import charwright.data.large_texts
    import charwright.workflow.training
    from charwright.data.parts import Places

    imports_s = process_s()
    imported_mb, began = peak_mb(), time.perf_counter()
    places = Places(Path(cache), mapped_from_bytes=1 << 60 if what == "memory" else 0)
    if what == "prepare":
        corpus = charwright.data.large_texts.open_corpus(text, None, places)
        seconds = time.perf_counter() - began
        alphabet = corpus.text.alphabet  # type: ignore[union-attr]
        size = int(alphabet.utf8_lengths @ alphabet.counts)
        return {"mb_per_s": size / 1e6 / seconds, "peak_mb": peak_mb() - imported_mb}
    stamps: list[float] = []

    def count() -> None:
        stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        steps = 2 if what == "start" else STEPS
        charwright.workflow.training.train(text, out=out, places=places, steps=steps, should_stop=count, **OPTIONS)
    speed = 0.0 if what == "start" else (STEPS - WARM_UP) / (stamps[-1] - stamps[WARM_UP - 1])
    found = {"imports_s": imports_s, "first_step_s": stamps[0] - began, "steps_per_s": speed}
    return found | {"peak_mb": peak_mb() - imported_mb}


def process_s() -> float:
    """The age of this process, in seconds."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - began


def disk_mb_per_s(folder: Path) -> float:
    """How fast a gigabyte is written and flushed."""
    data, path = bytes(BLOCK), folder / "written.bin"
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(64):
            file.write(data)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return 64 * BLOCK / 1e6 / seconds


def peak_mb() -> float:
    """The peak of this process's memory; unlike that of getrusage, it does not include the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("this benchmark needs Linux")


def run(text: Path, cache: Path, what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(text), str(cache), what]
    values: dict[str, float] = json.loads(subprocess.check_output(command))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of trainings to compare")
    parser.add_argument("--folder", type=Path, help="where the texts are kept; without it they are removed at the end")
    parser.add_argument("--only", choices=["texts", "first", "map"], help="a part: the table, the first start, the map")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(*arguments.child)))
        return
    print(describe_machine())
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or Path(made)
        folder.mkdir(exist_ok=True)
        texts = write_texts(folder, int(arguments.gigabytes * 1e9))
        with tempfile.TemporaryDirectory(dir=folder) as caches:
            if arguments.only in (None, "texts"):
                print_texts(texts, Path(caches))
            if arguments.only in (None, "first"):
                first = run(texts["ASCII"], Path(caches) / "fresh", "start")
                print(f"\nfirst start on the ASCII text: {first['first_step_s']:.1f} s after the imports,", end=" ")
                print(f"peak {first['peak_mb']:.0f} MB over the imports", flush=True)
            if arguments.only in (None, "map"):
                print_map(texts["ASCII"], Path(caches), arguments.rounds)


def print_texts(texts: dict[str, Path], caches: Path) -> None:
    print(f"the disk takes {disk_mb_per_s(caches):.0f} MB/s\n")
    print("| text | prepared, MB/s | peak, MB | again: imports, s | to the first step, s | in all, s | peak, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, path in texts.items():
        first, second = run(path, caches / name, "prepare"), run(path, caches / name, "start")
        print(
            f"| {name} | {first['mb_per_s']:.0f} | {first['peak_mb']:.0f} | {second['imports_s']:.2f} "
            f"| {second['first_step_s']:.2f} | {second['imports_s'] + second['first_step_s']:.2f} "
            f"| {second['peak_mb']:.0f} |",
            flush=True,
        )


def print_map(text: Path, caches: Path, rounds: int) -> None:
    short = caches / "short.txt"
    with text.open("rb") as file:
        short.write_bytes(file.read(TRAINED_MB * 1_000_000))
    run(short, caches / "short", "prepare")
    speeds: dict[str, list[float]] = {"map": [], "memory": []}
    for _ in range(rounds):
        for what, found in speeds.items():
            found.append(run(short, caches / "short", what)["steps_per_s"])
    ratio, low, high = ratio_and_spread(speeds["map"], speeds["memory"])
    shown = ", ".join(f"{statistics.median(found):.2f} steps/s from {what}" for what, found in speeds.items())
    print(f"\ntraining (GRU 512, {TRAINED_MB} MB of text): {shown}")
    print(f"from the map against from memory: {100 * ratio:.1f} % ({100 * low:.1f} to {100 * high:.1f})")


if __name__ == "__main__":
    main()
