"""How long to train on a small text: constant and falling learning rates, windows of EMA, annealing at the best point.

    python experiments/small_schedules.py --texts code:20000:0,plays:20000:400000 --passes 400 --schedule constant \
        --anneal 0.25
    python experiments/small_schedules.py --texts docs:20000:0 --passes 200 dropout=0.6

A text is a kind, a number of characters and where they begin. A fifth of it is held out, in blocks. One training has
several averages of its weights, by window, and all are evaluated along the way. With --anneal, a training that has not
become better for some evaluations goes back to its best point, and the learning rate falls to zero from there, over
this share of the steps so far. A line for each text is added to small_schedules.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import charwright as cw
import corpora
from charwright.config import Recipe
from charwright.data.sequences import make_dataset
from charwright.data.short_texts import shrink_to_fit
from charwright.data.split import split_corpus
from charwright.model.cells import State
from charwright.model.compute import Compute
from charwright.model.initialization import start_from_frequencies
from charwright.training.batch import make_batch
from charwright.training.ema import EMA
from charwright.training.optimizer import clipped_gradients, make_optimizer, set_learning_rate
from sweep import value_of

LEDGER = Path(__file__).with_name("small_schedules.jsonl")
KINDS: dict[str, Callable[[], str]] = {
    "code": corpora.source_code,
    "docs": corpora.documentation,
    "plays": corpora.shakespeare,
    "russian": corpora.russian,
}
PLANNED = {
    "units": 256,
    "dropout": 0.5,
    "recurrent_dropout": 0.35,
    "weight_decay": 1.2,
    "learning_rate": 0.006,
    "optimizer": "cautious-adamw",
    "output_bias": "frequencies",
    "ngram_bits": 18,
    "ngram_order": 4,
    "ngram_rate": 0.03,
}
"""The plan for 20,000 characters that are read a hundred times or more; the n-grams decay with K = 10."""
WINDOWS = (0.1, 0.3, 0.5)
"""Of the averages of the weights, as fractions of the steps so far."""
WARMUP = 20
PATIENCE = 6  # evaluations without a new best one, before the learning rate is annealed
SHORTEST = 20  # steps of annealing


@dataclass(frozen=True)
class Point:
    """Where a training stands, to go back to."""

    step: int
    rate: float
    hidden: State
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    averages: list[dict[str, Any]]


class Trial:
    """One training on one text."""

    def __init__(
        self,
        text: str,
        passes: float,
        schedule: str,
        anneal: float,
        options: dict[str, Any],
        net: type[cw.LanguageModel] = cw.LanguageModel,
    ) -> None:
        """Divide the text and make the model, a `net`; `text` is KIND:CHARACTERS:OFFSET."""
        kind, characters, offset = text.split(":")
        whole = KINDS[kind]()[int(offset) : int(offset) + int(characters)]
        recipe = Recipe().with_options({"val_fraction": 0.2, "val_split": "blocks", **PLANNED, **options})
        training, self.held_out = split_corpus(whole, recipe.split)
        self.vocabulary = cw.Vocabulary.from_text(whole)
        self.ids = self.vocabulary.encode(training)
        recipe = recipe.with_options({"ngram_decay": 10 / len(self.ids)})
        self.sequences, _ = shrink_to_fit(len(self.ids), recipe.sequences)
        self.characters = self.sequences.batch * self.sequences.seq_length
        self.steps = int(passes * len(self.ids) / self.characters)
        self.settings = recipe.with_options({"steps": self.steps}).training
        self.schedule, self.anneal = schedule, anneal
        self.model = net(
            recipe.model,
            len(self.vocabulary),
            seed=self.settings.seed,
            embedding_range=self.settings.embedding_range,
            compute=Compute.choose("cpu"),
        )
        start_from_frequencies(self.model.weight("head.bias"), np.bincount(self.ids, minlength=len(self.vocabulary)))
        self.optimizer = make_optimizer(self.model, self.settings, self.characters)
        self.averages = [EMA(self.model, window) for window in WINDOWS]
        self.step = 0
        self.hidden: State | None = None
        self.best: Point | None = None

    def run(self, points: int) -> dict[str, Any]:
        """Train, evaluating at `points` steps, the first ones closer to each other; returns figures by window."""
        marks = {max(1, int(self.steps * (i / points) ** 1.5)) for i in range(1, points + 1)}
        curve: list[tuple[float, list[float]]] = []
        lowest, worse = math.inf, 0
        with clipped_gradients(self.model, self.optimizer, self.settings.clip_norm):
            while self.step < self.steps and not (self.anneal and worse >= PATIENCE):
                self._train(self._factor, min((mark for mark in marks if mark > self.step), default=self.steps))
                losses = self.evaluate()
                curve.append((self.passes, losses))
                worse += 1
                if losses[0] < lowest:
                    lowest, worse, self.best = losses[0], 0, self._point()
            annealed_from = self._anneal() if self.anneal else None
        best = [min(curve, key=lambda at: at[1][i]) for i in range(len(WINDOWS))]
        return {
            "steps": self.step,
            "best": [losses[i] for i, (_, losses) in enumerate(best)],
            "at": [passes for passes, _ in best],
            "final": self.evaluate(),
            **({"annealed_from": annealed_from} if self.anneal else {}),
            "curve": curve,
        }

    @property
    def passes(self) -> float:
        """How often the text was read so far."""
        return round(self.step * self.characters / len(self.ids), 1)

    def evaluate(self) -> list[float]:
        """The held-out loss of each average."""
        losses = []
        for average in self.averages:
            with average.applied():
                losses.append(round(cw.evaluate(self.model, self.vocabulary, self.held_out).nats_per_char, 4))
        return losses

    def _factor(self, step: int) -> float:
        """The learning rate as a fraction of its peak."""
        rise = min(1.0, (step + 1) / (WARMUP + 1))
        return rise if self.schedule == "constant" else rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _train(self, rate: Callable[[int], float], until: int) -> None:
        dataset = make_dataset(self.ids, self.sequences, self.settings.seed)
        while self.step < until:
            for pair in dataset.batches(*divmod(self.step, dataset.steps_per_epoch)):
                set_learning_rate(self.optimizer, rate(self.step))
                batch = make_batch(pair, self.hidden, self.settings, self.step, torch.device("cpu"))
                self.model.train()
                cw.train_step(self.model, batch, self.optimizer)
                self.hidden = batch.state
                self.step += 1
                for average in self.averages:
                    average.update(self.step)
                if self.step == until:
                    break

    def _point(self) -> Point:
        assert self.hidden is not None
        return Point(
            self.step,
            self._factor(self.step),
            tuple(part.clone() for part in self.hidden),
            copy.deepcopy(self.model.arrays()),
            copy.deepcopy(self.optimizer.state_dict()),
            [copy.deepcopy(average.arrays()) for average in self.averages],
        )

    def _anneal(self) -> float:
        """Go back to the best point, and let the learning rate fall to zero; returns the passes at that point."""
        point = self.best
        assert point is not None
        self.model.load_arrays(point.weights)
        self.optimizer.load_state_dict(point.optimizer)
        for average, arrays in zip(self.averages, point.averages, strict=True):
            average.load(arrays)
        self.step, self.hidden = point.step, point.hidden
        began, length = self.passes, max(SHORTEST, int(point.step * self.anneal))
        self._train(lambda step: point.rate * (1 - (step - point.step) / length), point.step + length)
        return began


def main() -> None:
    """Run a trial for each text, and add its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True, help="KIND:CHARACTERS:OFFSET, with commas between")
    parser.add_argument("--passes", type=float, required=True, help="over the text")
    parser.add_argument("--schedule", choices=("constant", "cosine"), default="cosine", help="of the learning rate")
    parser.add_argument("--anneal", type=float, default=0.0, help="share of the steps so far (default: no annealing)")
    parser.add_argument("--points", type=int, default=24, help="evaluations (default: %(default)s)")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    options = {name: value_of(value) for name, _, value in (item.partition("=") for item in asked.options)}
    for text in asked.texts.split(","):
        trial = Trial(text, asked.passes, asked.schedule, asked.anneal, options)
        known = {"text": text, "passes": asked.passes, "schedule": asked.schedule, "anneal": asked.anneal}
        line = {**known, "options": options, **trial.run(asked.points)}
        with LEDGER.open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
