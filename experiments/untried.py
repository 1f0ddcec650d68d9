"""Trials of features that the library does not have, each against the baseline, recorded in untried.jsonl.

    python experiments/untried.py --corpus shakespeare,docs-2m --minutes 0.25 --units 256 --seeds 1,2 none
    python experiments/untried.py --corpus shakespeare,docs-2m --minutes 0.25 --units 256 --seeds 1,2 Soap every=10
    python experiments/untried_table.py

run every trial that is not in the ledger yet, and print the differences. Features are the classes of
untried_features.py, `none` is the library as it is. Texts, held-out parts and budgets are those of sweep.py: minutes of
the reference machine as steps, so that other programs on this machine change no result. Dropout and weight decay are as
the plan chooses them for the passes. The cost of a feature is the processor time of its step divided by that of the
baseline, measured alternately; `--share` gives a trial this fraction of the steps, to compare at equal time. No trial
has a moving average of the weights, except by feature.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import charwright as cw
from charwright.config import Recipe
from charwright.data.sequences import Pair, make_dataset
from charwright.data.split import split_corpus
from charwright.model.compute import keep_memory
from charwright.storage import drop_cut_line
from charwright.training.batch import make_batch
from corpora import TEXTS
from sweep import USABLE, read_ledger, seconds_per_character
from untried_features import Distillation, Feature, Net, feature_named
from untried_table import BASELINES

LEDGER = Path(__file__).with_name("untried.jsonl")
KEYS = ("corpus", "minutes", "units", "rate", "optimizer", "feature", "settings", "share", "seed")
EARLIER_OPTIMIZER = "adamw"
"""That of the lines that name none."""


class Data:
    """A text for training and one held out from it, as in sweep.py."""

    def __init__(self, corpus: str) -> None:
        """Read and split the text."""
        how = Recipe().with_options(
            {"val_limit": 100_000, "val_split": "tail" if corpus == "shakespeare" else "blocks"}
        )
        whole = TEXTS[corpus]()
        rest = whole if corpus == "shakespeare" else split_corpus(whole, how.split)[0]
        training, self.held_out = split_corpus(rest, how.split)
        self.vocabulary = cw.Vocabulary.from_text(rest)
        self.ids = self.vocabulary.encode(training)


def planned(data: Data, minutes: float, units: int, optimizer: str, rate: float = 1.0) -> Recipe:
    """The recipe of the baseline: the plan's, but for the optimizer and `rate`, a factor of the learning rate."""
    recipe = Recipe().with_options({"units": units, "optimizer": optimizer})
    characters = minutes * 60 * USABLE / seconds_per_character(recipe, len(data.vocabulary))
    strain = math.sqrt(characters / len(data.ids) / 7)
    rates = {
        "dropout": min(0.5, 0.1 * strain),
        "recurrent_dropout": min(0.35, 0.08 * strain),
        "weight_decay": min(1.2, 0.2 * max(0.5, strain)),
    }
    rounded = {name: float(f"{value:.2g}") for name, value in rates.items()}
    return recipe.with_options({**rounded, "learning_rate": rate * recipe.training.learning_rate})


class Training:
    """One model in training: `step` trains on one batch, `fraction` is the spent part of the budget."""

    def __init__(self, feature: Feature, data: Data, recipe: Recipe, characters: float, seed: int) -> None:
        """A model before its first step."""
        self.feature, self.data, self.recipe = feature, data, feature.recipe(recipe)
        self.characters, self.seed, self.done, self.steps = characters, seed, 0, 0
        self.model: Net = feature.model(self.recipe, len(data.vocabulary), seed)
        feature.read(self.model, data.ids)
        self.optimizers = feature.optimizers(self.model, self.recipe)
        self.rates = [[group["lr"] for group in made.param_groups] for made in self.optimizers]
        tables = ("sparse", "extras.table")
        self.dense = [weight for name, weight in self.model.named_parameters() if not name.startswith(tables)]
        self.state: Any = None
        self.shape: tuple[int, int] | None = None
        self.batches: Iterator[Pair] = iter(())
        self.epoch = 1

    @property
    def fraction(self) -> float:
        """The spent part of the budget."""
        return min(1.0, self.done / self.characters)

    def _pair(self) -> Pair:
        sequences = self.recipe.sequences
        shape = self.feature.sizes(self.fraction) or (sequences.batch, sequences.seq_length)
        pair = next(self.batches, None) if shape == self.shape else None
        if pair is None:
            self.state = None
            self.shape = shape
            sizes = self.recipe.with_options({"batch": shape[0], "seq_length": shape[1]}).sequences
            self.batches = make_dataset(self.data.ids, sizes, self.seed).batches(self.epoch)
            self.epoch += 1
            pair = next(self.batches)
        return pair

    def step(self) -> float:
        """Train on one batch; returns its loss."""
        config, fraction = self.recipe.training, self.fraction
        pair = self._pair()
        rise = min(1.0, (self.steps + 1) / (config.warmup + 1))
        factor = rise * self.feature.rate(fraction)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        seeded = self.recipe.with_options({"seed": self.seed}).training
        batch = make_batch(pair, self.state, seeded, self.steps, torch.device("cpu"))
        self.model.train()
        self.feature.before_step(self.model, self.recipe, fraction)
        loss, state = self.feature.loss(self.model, batch, fraction)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.dense, config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.state = tuple(part.detach() for part in state)
        self.done += pair[0].size
        self.steps += 1
        self.feature.after_step(self.model, fraction, self.steps)
        return float(loss.detach())

    def run(self) -> list[float]:
        """Train until the budget is spent; returns the mean loss of each tenth."""
        losses: list[list[float]] = [[] for _ in range(10)]
        while self.done + self.recipe.sequences.batch * self.recipe.sequences.seq_length <= self.characters:
            tenth = int(10 * self.fraction)
            losses[tenth].append(self.step())
        self.feature.finish(self.model)
        return [round(statistics.fmean(some), 4) for some in losses if some]


def characters_of(feature: Feature, recipe: Recipe, data: Data, minutes: float, share: float) -> float:
    """The characters that the reference machine reads in the time, times the share."""
    return share * minutes * 60 * USABLE / seconds_per_character(feature.recipe(recipe), len(data.vocabulary))


def run_trial(data: Data, trial: dict[str, Any]) -> dict[str, Any]:
    """Train with a feature and evaluate; returns the line for the ledger."""
    minutes, seed = trial["minutes"], trial["seed"]
    recipe = planned(data, minutes, trial["units"], trial["optimizer"], trial["rate"])
    feature = feature_named(trial["feature"], trial["settings"])
    characters = characters_of(feature, recipe, data, minutes, trial["share"])
    began = time.monotonic()
    if isinstance(feature, Distillation) and trial["feature"] == "Distillation":
        teacher = Training(Feature(), data, recipe, characters, seed + 100)
        teacher.run()
        feature.teacher = teacher.model
    training = Training(feature, data, recipe, characters, seed)
    curve = training.run()
    seconds = time.monotonic() - began
    carried = cw.evaluate(training.model, data.vocabulary, data.held_out)
    return {
        **trial,
        "characters": len(data.ids),
        "steps": training.steps,
        "passes": round(training.done / len(data.ids), 2),
        "train": curve[-1],
        "curve": curve,
        "carried": round(carried.nats_per_char, 4),
        "seconds": round(seconds, 1),
    }


def measure_cost(data: Data, trial: dict[str, Any], rounds: int = 8) -> float:
    """The processor time of a character with the feature, divided by the baseline's; medians of alternating rounds."""
    recipe = planned(data, trial["minutes"], trial["units"], trial["optimizer"])
    names = (BASELINES.get(trial["feature"], "none"), trial["feature"])
    if names[0] == names[1]:
        return 1.0
    trainings = []
    for name in names:
        feature = feature_named(name, trial["settings"] if name == trial["feature"] else {})
        if isinstance(feature, Distillation):
            feature.teacher = Training(Feature(), data, recipe, 1e9, 1).model
        trainings.append(Training(feature, data, recipe, 1e9, 1))
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for training, taken in zip(trainings, times, strict=True):
            # At the middle of the budget all schedules of sizes are at theirs.
            training.characters, training.done = 1e9, int(5e8)
            began, before = time.process_time(), training.done
            for _ in range(6 if number else 2):
                training.step()
            if number:
                taken.append((time.process_time() - began) / (training.done - before))
    return round(statistics.median(times[1]) / statistics.median(times[0]), 3)


def key_of(line: dict[str, Any]) -> str:
    """The identity of a trial."""
    known = {"optimizer": EARLIER_OPTIMIZER, **line}
    return json.dumps([known[key] for key in KEYS], sort_keys=True)


def cost_of(lines: list[dict[str, Any]], data: Data, trial: dict[str, Any]) -> float:
    """The cost of a trial's feature, from an earlier trial of the same kind if there is one."""
    same = ("corpus", "units", "feature", "settings")
    found = [line["cost"] for line in lines if all(line[key] == trial[key] for key in same)]
    return found[0] if found else measure_cost(data, trial)


def main() -> None:
    """Run the trials that the ledger lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="shakespeare", help="names from corpora.py, separated by commas")
    parser.add_argument("--minutes", type=float, default=0.25)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1.0, help="times the planned learning rate")
    parser.add_argument("--optimizer", default="cautious-adamw")
    parser.add_argument("--seeds", default="1", help="separated by commas")
    parser.add_argument("--share", type=float, default=1.0, help="the fraction of the steps")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("feature", nargs="?", default="none", help="a class of untried_features.py, or several: A+B")
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    drop_cut_line(asked.ledger)  # That trial runs again.
    settings = {name: float(value) for name, _, value in (item.partition("=") for item in asked.settings)}
    for corpus in asked.corpus.split(","):
        data: Data | None = None
        for seed in map(int, asked.seeds.split(",")):
            how = (corpus, asked.minutes, asked.units, asked.rate, asked.optimizer)
            values = (*how, asked.feature, settings, asked.share, seed)
            trial = dict(zip(KEYS, values, strict=True))
            lines = read_ledger(asked.ledger)
            if key_of(trial) in {key_of(line) for line in lines}:
                continue
            data = data or Data(corpus)
            cost = cost_of(lines, data, trial)
            line = run_trial(data, trial) | {"cost": cost}
            with asked.ledger.open("a") as ledger:
                ledger.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
