"""A learning rate that is held before it falls to zero in a line, and dropout of the n-grams' votes.

    python experiments/held_rates.py --texts plays:900000:0,docs:1000000:1000000 --passes 3 --hold 0.4
    python experiments/held_rates.py --texts plays:200000:300000 --passes 12 --drop 0.3 learning_rate=0.0075
    python experiments/held_rates.py --texts plays:900000:0 --passes 9 --hold 0.4 --decay 3 units=384 cell=igru \
        multiplicative=true
    python experiments/held_rates.py --texts plays:900000:0 --passes 3 --hold 0.4 --chance 2.96 dropout=0.016 \
        recurrent_dropout=0.013 cell=igru multiplicative=true

A text is a kind, a number of characters and where they begin, as in small_schedules.py; a fifth of it is held out. The
model has 320 units, and else what the plan has for the text and the passes. `--hold` is the share of the steps with the
peak; without it the schedule is half a cosine. `--drop` is the share of the votes of single n-grams that each position
does without in training. K, the decay of the n-grams times the length of the text, is 1.2 times the square root of the
passes, at most 10, times `--decay`, or `--chance`. Each training is evaluated at its end, with the EMA of the plan. A
line for each text is added to held_rates.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charwright.model.language_model import LanguageModel
from charwright.training.optimizer import clipped_gradients
from small_schedules import WARMUP, Trial
from sweep import value_of

LEDGER = Path(__file__).with_name("held_rates.jsonl")
LONG = 400_000
"""Characters of a text for which a plan has 2^22 numbers of n-grams."""


def planned(characters: int, passes: float) -> dict[str, Any]:
    """The plan's options for a text of 100,000 characters or more."""
    strain = math.sqrt(passes / 7)
    rates = {
        "dropout": min(0.5, 0.1 * strain),
        "recurrent_dropout": min(0.35, 0.08 * strain),
        "weight_decay": min(1.2, 0.2 * max(0.5, strain)),
    }
    ngrams = {"ngram_bits": 22 if characters >= LONG else 20, "ngram_order": 8, "ngram_rate": 0.12}
    return {"units": 320, **{name: float(f"{rate:.2g}") for name, rate in rates.items()}, **ngrams}


class HeldRate(Trial):
    """A trial with another schedule, in which n-grams do not always vote."""

    def __init__(
        self,
        text: str,
        passes: float,
        hold: float | None,
        drop: float,
        options: dict[str, Any],
        net: type[LanguageModel] = LanguageModel,
        decay: float = 1.0,
        chance: float | None = None,
    ) -> None:
        """Make the model; `decay` is a factor of that of its n-grams, and `chance` is K itself."""
        super().__init__(text, passes, "cosine", 0.0, {**planned(int(text.split(":")[1]), passes), **options}, net)
        decay *= (min(10, 1.2 * math.sqrt(passes)) if chance is None else chance) / 10
        self.optimizer.ngram_descent._decay *= decay  # type: ignore[attr-defined]
        self.hold = hold
        if drop:
            self._drop_votes(drop, torch.Generator().manual_seed(5))

    def learn(self) -> float:
        """Train; returns the loss at the end."""
        with clipped_gradients(self.model, self.optimizer, self.settings.clip_norm):
            self._train(self._factor, self.steps)
        return self.evaluate()[0]

    def _factor(self, step: int) -> float:
        """The learning rate as a fraction of its peak."""
        if self.hold is None:
            return super()._factor(step)
        return min(1.0, (step + 1) / (WARMUP + 1)) * min(1.0, (1 - step / self.steps) / (1 - self.hold))

    def _drop_votes(self, rate: float, generator: torch.Generator) -> None:
        """Point some votes to the row behind the last n-gram, which is kept at zero."""
        model, nothing = self.model, 1 << self.model.config.ngram_bits
        votes_of = model._votes

        def votes(ids: Tensor, *states: Any) -> Any:
            found, after = votes_of(ids, *states)
            if model.training and found is not None:
                found.offsets.masked_fill_(torch.rand(found.offsets.shape, generator=generator) < rate, nothing)
            return found, after

        @torch.no_grad()
        def keep_at_zero(*_: object) -> None:
            model.weight("ngrams.weight")[nothing:] = 0

        model._votes = votes  # type: ignore[method-assign]
        self.optimizer.register_step_post_hook(keep_at_zero)


def parser_of_trials(doc: str | None) -> argparse.ArgumentParser:
    """The command line of trials: texts, passes, and options of the recipe behind what the script adds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True, help="KIND:CHARACTERS:OFFSET, with commas between")
    parser.add_argument("--passes", type=float, required=True, help="over the text")
    return parser


def parse_trials(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with `options` by name."""
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    asked = parser.parse_args()
    asked.options = {name: value_of(value) for name, _, value in (item.partition("=") for item in asked.options)}
    return asked


def add_line(ledger: Path, line: dict[str, Any]) -> None:
    """Add a trial to a ledger, and print it."""
    with ledger.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    """Run a trial for each text, and add its line."""
    parser = parser_of_trials(__doc__)
    parser.add_argument("--hold", type=float, help="share of the steps with the peak (default: half a cosine)")
    parser.add_argument("--drop", type=float, default=0.0, help="share of the votes that are left out")
    parser.add_argument("--decay", type=float, default=1.0, help="factor of the decay of n-grams (default: 1)")
    parser.add_argument("--chance", type=float, help="K of the decay of n-grams, instead of its formula")
    asked = parse_trials(parser)
    torch.set_num_threads(1)
    for text in asked.texts.split(","):
        trial = HeldRate(
            text, asked.passes, asked.hold, asked.drop, asked.options, decay=asked.decay, chance=asked.chance
        )
        loss = trial.learn()
        known = {"text": text, "passes": asked.passes, "hold": asked.hold, "drop": asked.drop, "options": asked.options}
        decay = {} if asked.decay == 1 else {"decay": asked.decay}
        chance = {} if asked.chance is None else {"chance": asked.chance}
        add_line(LEDGER, {**known, **decay, **chance, "steps": trial.steps, "loss": loss})


if __name__ == "__main__":
    main()
