"""How long `charwright generate RUN --new` takes for a thousand records, as a whole process.

    python benchmarks/new_records.py

trains half a minute on 5,000 words of Python's documentation, and then generates with another seed in each round. The
records are checked: all different, and none of them in the list.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from corpora import TEXTS


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=0.5)
    asked = parser.parse_args()
    charwright = [sys.executable, "-m", "charwright"]
    with tempfile.TemporaryDirectory() as folder:
        text, run = Path(folder) / "words.txt", Path(folder) / "run"
        text.write_text(TEXTS["words-5k"](), encoding="utf-8")
        train = [*charwright, "train", str(text), "--minutes", f"{asked.minutes:g}", "--out", str(run)]
        subprocess.run(train, check=True, stderr=subprocess.DEVNULL)
        known = set(text.read_text(encoding="utf-8").split("\n"))
        print(f"{describe_machine()}\n\n| options | seconds | thrown away |\n|---|---|---|")
        for options in ([], ["--distance", "1"]):
            seconds, thrown_away = [], []
            for seed in range(asked.rounds):
                command = [*charwright, "generate", str(run), "--num", str(asked.num), "--new", "--seed", str(seed)]
                began = time.monotonic()
                done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
                seconds.append(time.monotonic() - began)
                records = done.stdout.split("\n")[:-1]
                if len(records) != asked.num or len(set(records)) != asked.num or known & set(records):
                    raise SystemExit(f"the records of seed {seed} are not {asked.num} new ones")
                words = done.stderr.partition("threw away ")[2]
                thrown_away.append(int(words.partition(":")[0].replace(",", "") or 0))
            shown = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            print(f"| --new {' '.join(options)} | {shown} | {min(thrown_away)} to {max(thrown_away)} |", flush=True)


if __name__ == "__main__":
    main()
