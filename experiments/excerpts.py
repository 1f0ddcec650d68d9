"""Excerpts in a random order instead of contiguous streams, at equal steps.

    python experiments/excerpts.py --texts code:8000000:0,russian:4000000:0 --passes 0.3 --lengths 0,256,4096
    python experiments/excerpts.py --texts plays:900000:0 --passes 3 --lengths 0,256 units=384

A text is a kind, a number of characters and where they begin, as in small_schedules.py; a fifth of it is held out in
blocks. A length is that of the excerpts, and 0 is for contiguous streams. The model has 320 units, and else what the
plan has for the text and the steps, with the EMA of the plan. A line for each training is added to excerpts.jsonl.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from charwright import Vocabulary
from charwright.config import Recipe
from charwright.data import sequences
from charwright.data.split import split_corpus
from charwright.planning.plan import make_plan
from charwright.planning.profile import TextProfile
from held_rates import HeldRate, add_line, parse_trials, parser_of_trials
from small_schedules import KINDS

LEDGER = Path(__file__).with_name("excerpts.jsonl")
PLANNED = ("dropout", "recurrent_dropout", "weight_decay", "ngram_bits", "ngram_order", "ngram_rate")


def planned(text: str, passes: float, units: int) -> tuple[dict[str, Any], float]:
    """The plan's options for a text and a number of passes over it, and K, the decay of its n-grams."""
    kind, characters, offset = text.split(":")
    whole = KINDS[kind]()[int(offset) : int(offset) + int(characters)]
    split = Recipe().with_options({"val_fraction": 0.2, "val_split": "blocks"}).split
    profile = TextProfile.of(split_corpus(whole, split)[0], Vocabulary.from_text(whole))
    steps = max(1, round(passes * profile.read / (32 * 64)))
    recipe = make_plan(profile, {"steps": steps, "units": units}, {}).recipe
    values = {**recipe.model.to_json(), **recipe.training.to_json()}
    options = {"cell": "igru", "multiplicative": True, "units": units, **{name: values[name] for name in PLANNED}}
    return options, recipe.training.ngram_decay * profile.read


def main() -> None:
    """Run a trial for each text, length and seed, and add its line."""
    parser = parser_of_trials(__doc__)
    parser.add_argument("--lengths", default="0,256", help="ids of an excerpt, with commas between; 0 for streams")
    parser.add_argument("--seeds", default="1", help="with commas between")
    asked = parse_trials(parser)
    torch.set_num_threads(1)
    lengths, seeds = (tuple(map(int, some.split(","))) for some in (asked.lengths, asked.seeds))
    for text, length, seed in itertools.product(asked.texts.split(","), lengths, seeds):
        options, chance = planned(text, asked.passes, asked.options.get("units", 320))
        options |= {**asked.options, "order": "excerpts" if length else "streams", "seed": seed}
        sequences.EXCERPT = length or sequences.EXCERPT
        trial = HeldRate(text, asked.passes, 0.4, 0.0, options, chance=chance)
        line = {"text": text, "passes": asked.passes, "length": length, "options": options, "chance": round(chance, 3)}
        add_line(LEDGER, {**line, "steps": trial.steps, "loss": trial.learn()})


if __name__ == "__main__":
    main()
