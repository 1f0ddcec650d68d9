"""How to regularize a text that is read many times, measured on plays of which it has nothing.

    python experiments/other_plays.py --characters 250000 --begin 300000 --passes 38 units=512 dropout=0.12 \
        recurrent_dropout=0.2 weight_decay=0.8

The training text is a part of tiny shakespeare, and the held-out one is its ninth tenth; blocks of the same plays would
share their names and scenes. The last tenth, on which results are reported, is not read. The options that are not given
are those of the plan for as many passes. A line with the options that differ between trials, and with the lowest
validation loss, is added to other_plays.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import charwright as cw
import corpora
from charwright.planning.plan import option_values
from charwright.run import Run
from sweep import value_of

LEDGER = Path(__file__).with_name("other_plays.jsonl")
HELD_OUT = 892_315
"""Where the ninth tenth begins."""
KEPT = ("units", "learning_rate", "dropout", "recurrent_dropout", "weight_decay", "ngram_decay", "seed")


def trial(characters: int, begin: int, passes: int, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train in a folder on one thread; returns the line of the ledger."""
    text = corpora.shakespeare()
    training, held_out = folder / "training.txt", folder / "held-out.txt"
    training.write_text(text[begin : begin + characters], encoding="utf-8")
    held_out.write_text(text[HELD_OUT:], encoding="utf-8")
    run = cw.train(training, validation=held_out, out=folder / "run", epochs=passes, threads=1, **options)
    return line_of(run, characters, begin, passes)


def line_of(run: Run, characters: int, begin: int, passes: int) -> dict[str, Any]:
    """The line of a run that has ended."""
    values = option_values(run.config.recipe)
    *_, end = run.log()
    return {
        "characters": characters,
        "begin": begin,
        "passes": passes,
        "options": {name: values[name] for name in KEPT},
        "steps": end["step"],
        "loss": round(end["best_loss"], 4),
    }


def main() -> None:
    """Run the trial that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=250_000)
    parser.add_argument("--begin", type=int, default=300_000)
    parser.add_argument("--passes", type=int, required=True)
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE")
    args = parser.parse_args()
    if args.begin + args.characters > HELD_OUT:
        raise SystemExit(f"a training text ends before the held-out one, which begins at {HELD_OUT:,}")
    options = {name: value_of(value) for name, _, value in (item.partition("=") for item in args.options)}
    with tempfile.TemporaryDirectory() as folder:
        line = trial(args.characters, args.begin, args.passes, options, Path(folder))
    with LEDGER.open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
