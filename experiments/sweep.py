"""Trials of training options on many texts, recorded in a ledger, to which the planner's rule is fitted.

    python experiments/sweep.py --corpus shakespeare,code-20k --minutes 0.5,2 units=384,512 weight_decay=0.1,0.3

runs every combination that is not in the ledger yet, and adds a line for each. A trial is measured on held-out text, a
tenth of the training text; the validation text that results are reported on is not used. A budget is given in minutes
of the reference machine, and converted to steps at the speeds below: other programs on this machine change no result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import charwright as cw
from charwright.config import RENAMED, Recipe
from charwright.data.sequences import make_dataset
from charwright.data.short_texts import shrink_to_fit
from charwright.data.split import split_corpus
from charwright.model.compute import Compute
from charwright.model.initialization import start_from_frequencies
from charwright.storage import drop_cut_line
from charwright.training import events
from charwright.training.batch import TrainStep
from corpora import TEXTS

LEDGER = Path(__file__).with_name("ledger.jsonl")

# Characters per second of the reference machine (two cores of an AMD EPYC with AVX-512 bf16), by units, in one layer
# with a small vocabulary. The time per character is interpolated between them.
SPEEDS = {64: 400e3, 128: 350e3, 256: 220e3, 384: 150e3, 512: 100e3, 640: 74e3, 768: 59e3, 1024: 39e3, 1536: 18e3}
CURVE_POINTS = 16  # at most, of the held-out loss over the steps: where it rises, the model memorizes
USABLE = 0.93  # fraction of a short budget; the rest goes to starting, measuring and saving


def seconds_per_character(recipe: Recipe, vocabulary_size: int) -> float:
    """The time on the reference machine: the recurrent layers by size, and the head by its number of weights."""
    model, widths = recipe.model, sorted(SPEEDS)
    at = min(max(model.units, widths[0]), widths[-1])
    above = next(width for width in widths if width >= at)
    below = max(width for width in widths if width <= at)
    share = 0.0 if above == below else (at - below) / (above - below)
    layer = (1 - share) / SPEEDS[below] + share / SPEEDS[above]
    cell = {"gru": 1.0, "igru": 0.7, "lstm": 1.2, "rnn": 0.4}[model.cell]
    head = max(0, vocabulary_size - 128) * model.units * 6 / 1.5e12
    small_batches = {8: 1.9, 16: 1.25, 32: 1.0, 64: 0.93}.get(recipe.sequences.batch, 1.0)
    return (layer * cell * (1 + 1.15 * (model.layers - 1)) + head) * small_batches


@dataclass(frozen=True)
class Trained:
    """A trained model, the text held out from it, and the line for the ledger."""

    model: cw.LanguageModel
    vocabulary: cw.Vocabulary
    held_out: str
    line: dict[str, Any]


def run_trial(corpus: str, minutes: float, options: dict[str, Any], train_step: TrainStep = cw.train_step) -> Trained:
    """Train a model on a part of a text and evaluate it on the rest."""
    recipe = Recipe().with_options({"val_limit": 100_000, "val_split": "tail", **options})
    if corpus != "shakespeare":
        recipe = recipe.with_options({"val_split": "blocks"})
    # The part that a user would validate on is held out first.
    rest, _ = split_corpus(TEXTS[corpus](), recipe.split) if corpus != "shakespeare" else (TEXTS[corpus](), "")
    training, held_out = split_corpus(rest, recipe.split)
    vocabulary = cw.Vocabulary.from_text(rest)
    ids = vocabulary.encode(training)
    sequences, _ = shrink_to_fit(len(ids), recipe.sequences)
    characters = minutes * 60 * USABLE / seconds_per_character(recipe, len(vocabulary))
    steps = max(20, int(characters / (sequences.batch * sequences.seq_length)))
    settings = recipe.with_options({"steps": steps}).training
    model = cw.LanguageModel(
        recipe.model,
        len(vocabulary),
        seed=settings.seed,
        embedding_range=settings.embedding_range,
        compute=Compute.choose("cpu"),
    )
    if settings.output_bias == "frequencies":
        start_from_frequencies(model.weight("head.bias"), np.bincount(ids, minlength=len(vocabulary)))
    began = time.monotonic()
    trained = 0.0
    curve: list[tuple[int, float]] = []
    for event in cw.fit(model, make_dataset(ids, sequences, settings.seed), settings, train_step=train_step):
        if isinstance(event, events.Epoch):
            trained = event.train_loss
            if event.step >= len(curve) * steps / CURVE_POINTS:
                # While an epoch is reported, the model holds the average of its weights.
                curve.append((event.step, round(cw.evaluate(model, vocabulary, held_out).nats_per_char, 4)))
        if isinstance(event, events.Rollback):
            trained = float("nan")
    seconds = time.monotonic() - began
    carried = cw.evaluate(model, vocabulary, held_out)
    windows = cw.evaluate(model, vocabulary, held_out, "windows-256").nats_per_char if len(held_out) > 300 else None
    line = {
        "corpus": corpus,
        "characters": len(training),
        "vocabulary": len(vocabulary),
        "minutes": minutes,
        "options": options,
        "steps": steps,
        "passes": round(steps * sequences.batch * sequences.seq_length / len(ids), 2),
        "train": round(trained, 4),
        "carried": round(carried.nats_per_char, 4),
        "windows": None if windows is None else round(windows, 4),
        "seconds": round(seconds, 1),
        "curve": curve,
    }
    return Trained(model, vocabulary, held_out, line)


def key_of(line: dict[str, Any]) -> str:
    """The identity of a trial; older lines have the previous names of some options."""
    options = {RENAMED.get(name, name): value for name, value in line["options"].items()}
    return json.dumps([line["corpus"], line["minutes"], options], sort_keys=True)


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All trials so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def values_of(text: str) -> list[Any]:
    """Several values, separated by commas."""
    return [value_of(part) for part in text.split(",")]


def value_of(text: str) -> Any:
    """A number, true or false, or a word."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> None:
    """Run the trials of a grid that the ledger lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="names from corpora.py, separated by commas")
    parser.add_argument("--minutes", required=True, help="budgets, separated by commas")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of a trial (default: %(default)s)",
    )
    parser.add_argument("grid", nargs="*", metavar="OPTION=VALUE,VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    drop_cut_line(asked.ledger)  # That trial runs again.
    names = [item.partition("=")[0] for item in asked.grid]
    values = [values_of(item.partition("=")[2]) for item in asked.grid]
    for corpus, minutes, *chosen in itertools.product(asked.corpus.split(","), values_of(asked.minutes), *values):
        options = dict(zip(names, chosen, strict=True))
        known = {key_of(line) for line in read_ledger(asked.ledger)}
        if key_of({"corpus": corpus, "minutes": minutes, "options": options}) in known:
            continue
        line = run_trial(corpus, minutes, options).line
        with asked.ledger.open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
