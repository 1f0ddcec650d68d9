"""Validation loss after a given number of minutes: the planned recipe next to others, in one run.

    python benchmarks/quality.py --minutes 2                       # tiny shakespeare, three seeds of each
    python benchmarks/quality.py --minutes 2 --texts all --seeds 1 # every text of the experiments
    python benchmarks/quality.py --minutes 2 --texts all --seeds 1 --cpus 0   # on one core
    python benchmarks/quality.py --minutes 0.5 --texts words-5k words-5k-sorted --sides planned running
    python benchmarks/quality.py --minutes 2 --sides planned network   # what the n-grams gain
    python benchmarks/quality.py --minutes 5 --texts code-20k docs-20k --sides planned single

All sides are complete `charwright train` commands, in turn; the wall time is that of the whole command. Every loss is
that of the saved model on the text's last tenth (tiny shakespeare) or on the blocks held out for validation (all
others), which no side trained on. Of a list, a tenth of the records is held out, and all sides are measured record by
record; `running` takes it as running text. `network` is the plan without n-grams. `distilled` is an ensemble of
four teachers and a model that learns from them, in the same time, as the plan has for short texts; `single` is one
model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import charwright as cw
from charwright.data.lists import is_list
from charwright.data.records import split_records
from charwright.data.split import split_corpus
from machine import describe_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from corpora import TEXTS, whole_text

SIDES = {
    "planned": [],
    "tutorial": ["--recipe", "tutorial"],
    "running": ["--records", "none"],
    "network": ["--ngram-bits", "0"],
    "distilled": ["--ensemble", "4"],
    "single": ["--ensemble", "0"],
}


@dataclass(frozen=True)
class Result:
    """One command: the loss of its model by two protocols, its duration and its model size.

    `carried` is the loss record by record if the text is a list; `windows` is not measured then.
    """

    carried: float
    windows: float | None
    wall_s: float
    units: int
    diverged: bool


def train(text: Path, side: str, minutes: float, seed: int, split: str, folder: Path) -> Result:
    """Run one `charwright train` and evaluate the saved model."""
    run = folder / f"{text.stem}-{side}-{minutes:g}-{seed}"
    command = [sys.executable, "-m", "charwright", "train", str(text), "--minutes", f"{minutes:g}"]
    command += ["--seed", str(seed), "--out", str(run), "--force", *SIDES[side]]
    held_out = held_out_of(text)
    if held_out.exists():
        command += ["--validation", str(held_out)]
    else:
        command += ["--val-split", split, "--val-fraction", "0.1"]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wall_s = time.monotonic() - began
    return measure(run, text, wall_s)


def held_out_of(text: Path) -> Path:
    """The file with the records of a list that are held out."""
    return text.with_suffix(".held-out")


def hold_out(text: Path) -> None:
    """Move a tenth of the records of a list into a file of their own."""
    records = cw.Records.parse(text.read_text(encoding="utf-8"), cw.RecordsConfig("line"))
    training, held_out = split_records(records, cw.SplitConfig())
    assert held_out is not None
    text.write_text(training.text, encoding="utf-8")
    held_out_of(text).write_text(held_out.text, encoding="utf-8")


def measure(folder: Path, text: Path, wall_s: float) -> Result:
    """The losses of a run on its held-out text."""
    run = cw.Run.open(folder)
    model = cw.LanguageModel.from_arrays(run.model, run.weights())
    windows = None
    if (held_out := held_out_of(text)).exists():
        records = cw.Records.parse(held_out.read_text(encoding="utf-8"), cw.RecordsConfig("line"))
        carried = cw.evaluate(model, run.vocabulary, records).nats_per_char
    else:
        _, validation = split_corpus(text.read_text(encoding="utf-8"), run.config.recipe.split)
        carried = cw.evaluate(model, run.vocabulary, validation).nats_per_char
        windows = cw.evaluate(model, run.vocabulary, validation, "windows-256").nats_per_char
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    return Result(carried, windows, wall_s, run.model.units, "rollback" in events)


def row(name: str, minutes: float, side: str, results: list[Result]) -> str:
    """A row of the table: the median, with minimum and maximum if there are several seeds."""
    losses = [result.carried for result in results]
    spread = f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else ""
    in_windows = [result.windows for result in results if result.windows is not None]
    windows = f"{statistics.median(in_windows):.4f}" if in_windows else ""
    longest = max(result.wall_s for result in results)
    widths = "/".join(str(units) for units in sorted({result.units for result in results}))
    return (
        f"| {name} | {minutes:g} | {side} | {statistics.median(losses):.4f}{spread} | {windows} | {widths} "
        f"| {longest:.1f} s |"
    )


def compare(name: str, minutes: float, seeds: list[int], sides: list[str], folder: Path) -> None:
    """Train both sides in turn, seed by seed, and print their rows."""
    text = folder / f"{name}.txt"
    text.write_text(whole_text(name), encoding="utf-8")
    if is_list(text.read_text(encoding="utf-8")):
        hold_out(text)
    split = "tail" if name == "shakespeare" else "blocks"
    results: dict[str, list[Result]] = {side: [] for side in sides}
    for seed in seeds:
        for side in sides:
            results[side].append(train(text, side, minutes, seed, split, folder))
    for side in sides:
        print(row(name, minutes, side, results[side]), flush=True)
        if any(result.diverged for result in results[side]):
            print(f"|   | | {side} | rolled back after divergence | | | |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--texts", nargs="+", default=["shakespeare"], choices=[*TEXTS, "all"])
    parser.add_argument("--sides", nargs="+", default=["planned", "tutorial"], choices=list(SIDES))
    parser.add_argument("--cpus", type=int, nargs="+", help="cores to train on (Linux; default: all)")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder (default: delete them)")
    asked = parser.parse_args()
    if asked.cpus:
        os.sched_setaffinity(0, asked.cpus)
    print(f"{describe_machine()}; losses in nats per character\n")
    print("| text | minutes | recipe | carried | windows of 256 | units | longest command |")
    print("|---|---|---|---|---|---|---|", flush=True)
    names = list(TEXTS) if "all" in asked.texts else asked.texts
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            for minutes in asked.minutes:
                compare(name, minutes, asked.seeds, asked.sides, folder)


if __name__ == "__main__":
    main()
