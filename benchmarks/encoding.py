"""Speed of encoding a text and of building a vocabulary from it, in MB of UTF-8 per second on one core.

.venv/bin/python benchmarks/encoding.py
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable

import numpy as np

from charwright.data.vocabulary import Vocabulary
from machine import describe_machine

CHARACTERS = 8_000_000
ROUNDS = 5


def texts() -> dict[str, str]:
    """Texts of the same length whose characters take one, two and four bytes in memory."""
    draw = random.Random(1)
    alphabets = {
        "1-byte text (65 characters)": "".join(map(chr, range(33, 98))),
        "CJK (4,000 characters)": "".join(map(chr, range(0x4E00, 0x4E00 + 4000))) + "\n ",
        "CJK with emoji": "".join(map(chr, range(0x4E00, 0x4E00 + 4000))) + "\U0001f600",
    }
    return {
        name: "".join(draw.choices(alphabet, k=100_000)) * (CHARACTERS // 100_000)
        for name, alphabet in alphabets.items()
    }


def best_s(work: Callable[[], object]) -> float:
    """The shortest of several rounds, which is the one least disturbed by other processes."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    print(f"{describe_machine()}; Python {platform.python_version()}, numpy {np.__version__}; one core")
    print(f"{'':28} {'bytes/char':>10} {'encode MB/s':>12} {'from_text MB/s':>15}")
    for name, text in texts().items():
        megabytes = len(text.encode()) / 1e6
        vocabulary = Vocabulary.from_text(text)
        encode = megabytes / best_s(lambda: vocabulary.encode(text))  # noqa: B023
        make = megabytes / best_s(lambda: Vocabulary.from_text(text))  # noqa: B023
        print(f"{name:28} {len(text.encode()) / len(text):>10.2f} {encode:>12,.0f} {make:>15,.0f}")


if __name__ == "__main__":
    main()
