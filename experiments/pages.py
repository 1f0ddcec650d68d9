"""How to plan for a short text, measured on what follows it, or on its own blocks that are held out.

    python experiments/pages.py code 5000 --steps 500 weight_decay=5 ngram_bits=18
    python experiments/pages.py russian 20000 --steps 400 --held-out --pieces 4 weight_decay=2.1

The training texts are some pieces of a text. Each is measured on the 12,000 characters 2,000 behind its end, or with
`--held-out` on the tenth of it that `train` holds out, after 4 steps and then after 12 % more each time. The options
that are not given are those of the plan for as many steps; the output bias begins with zeros. A line with the means of
the lowest and of the last losses, and the steps of the lowest, is added to pages.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import charwright as cw
import corpora
from charwright.data.sequences import make_dataset
from charwright.data.split import split_corpus
from charwright.data.texts import ids_of
from charwright.evaluation.evaluation import Evaluation
from charwright.model.compute import Wanted
from sweep import value_of

LEDGER = Path(__file__).with_name("pages.jsonl")
TEXTS = {"shakespeare": "shakespeare", "code": "code-2m", "docs": "docs-2m", "russian": "russian", "chinese": "chinese"}
GAP, MEASURED = 2_000, 12_000


class Measured:
    """A `validate` callback that measures after 4 steps and then after 12 % more; between them it repeats itself."""

    def __init__(self, vocabulary: cw.Vocabulary, text: str, steps: int) -> None:
        self.vocabulary, self.text, self.steps = vocabulary, text, steps
        self.step = self._next = 0
        self.found: list[tuple[float, int]] = []
        self._last: Evaluation | None = None

    def train_step(self, model: cw.LanguageModel, batch: cw.Batch, optimizer: Any) -> Any:
        """Count the steps."""
        self.step += 1
        return cw.train_step(model, batch, optimizer)

    def __call__(self, model: cw.LanguageModel) -> Evaluation:
        """Measure if it is time."""
        if self._last is None or self.step >= self._next or self.step >= self.steps:
            self._next = max(self.step + 4, int(1.12 * self.step))
            self._last = cw.evaluate(model, self.vocabulary, self.text)
            self.found.append((self._last.nats_per_char, self.step))
        return self._last


def trained(text: str, measured: str, steps: int, options: dict[str, Any]) -> tuple[Measured, cw.Recipe]:
    """Train on a piece on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        file, other = Path(folder, "text.txt"), Path(folder, "other.txt")
        file.write_text(text, encoding="utf-8")
        other.write_text(measured, encoding="utf-8")
        recipe = cw.plan(file, validation=other, steps=steps, threads=1, records="none", **options).recipe
    vocabulary = cw.make_vocabulary(text, recipe.vocabulary)
    compute = Wanted(threads=1).by_rule()
    compute.start()
    model = cw.LanguageModel(
        recipe.model, len(vocabulary), embedding_range=recipe.training.embedding_range, compute=compute
    )
    dataset = make_dataset(ids_of(text, vocabulary), recipe.sequences, seed=1)
    watch = Measured(vocabulary, measured, steps)
    config = dataclasses.replace(recipe.training, patience=None)
    for _ in cw.fit(model, dataset, config, train_step=watch.train_step, validate=watch):
        pass
    return watch, recipe


def main() -> None:
    """Run the trial that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", choices=list(TEXTS))
    parser.add_argument("characters", type=int)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pieces", type=int, default=3)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE")
    args = parser.parse_intermixed_args()
    options = {name: value_of(value) for name, _, value in (item.partition("=") for item in args.options)}
    whole, random = corpora.TEXTS[TEXTS[args.text]](), Random(5)
    begins = [random.randrange(len(whole) - args.characters - GAP - MEASURED) for _ in range(args.pieces)]
    runs = []
    for begin in begins:
        end = begin + args.characters
        pair = whole[begin:end], whole[end + GAP : end + GAP + MEASURED]
        if args.held_out:
            pair = split_corpus(pair[0], cw.SplitConfig())
        runs.append(trained(*pair, args.steps, options))
    recipe = runs[0][1]
    lowest = [min(watch.found) for watch, _ in runs]
    line = {
        "text": args.text,
        "characters": args.characters,
        "measured": "blocks" if args.held_out else "what follows",
        "steps": args.steps,
        "units": recipe.model.units,
        "weight_decay": recipe.training.weight_decay,
        "ngram_bits": recipe.model.ngram_bits,
        "lowest": round(sum(loss for loss, _ in lowest) / args.pieces, 4),
        "at": [step for _, step in lowest],
        "last": round(sum(watch.found[-1][0] for watch, _ in runs) / args.pieces, 4),
    }
    with LEDGER.open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
