"""Would a model write better if it first learned from its prompt, as in dynamic evaluation?

    python experiments/untried_adaptation.py --corpus docs-2m --prompts shakespeare --minutes 0.25 --units 256

trains the baseline of untried.py on a text. Then it takes passages from a held-out text: a prompt, and what follows it.
What follows is scored by the model that has read the prompt, and by a copy that has also trained on it, with the rule
and the rates of `charwright evaluate --dynamic`. The passages are the same for both, so the standard error is paired.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from charwright.evaluation import dynamic
from charwright.evaluation.evaluate import continued_nats
from charwright.model.compute import keep_memory
from untried import Data, Training, planned
from untried_features import Feature, Net

LEDGER = Path(__file__).with_name("untried_adaptation.jsonl")
FOLLOWING = 1000


def mean_nats(model: Net, prompt: dynamic.Ids, following: dynamic.Ids) -> float:
    """The loss of what follows a prompt, in nats per character."""
    ids = np.concatenate([prompt, following]).astype(np.int64)[:, None]
    nats, _ = continued_nats(model, ids[:-1], ids[1:], None)
    return float(nats[len(prompt) - 1 :].mean())


def main() -> None:
    """Train, compare over the passages, and add a line for each length and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="shakespeare", help="the text to train on")
    parser.add_argument("--prompts", default="", help="the text that the passages are from (default: the same)")
    parser.add_argument("--minutes", type=float, default=0.25)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--lengths", default="500,4000", help="characters of a prompt, separated by commas")
    parser.add_argument("--rates", default="0.0003,0.001", help="rates of learning, separated by commas")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    data = Data(asked.corpus)
    recipe = planned(data, asked.minutes, asked.units)
    training = Training(Feature(), data, recipe, recipe_characters(data, asked.minutes, asked.units), 1)
    training.run()
    model = training.model
    held_out = data.vocabulary.encode((Data(asked.prompts) if asked.prompts else data).held_out)
    gathered = dynamic._Learner(model, 0.0, dynamic.DECAY)
    gathered.gather(data.ids)
    for length in map(int, asked.lengths.split(",")):
        begins = np.linspace(0, len(held_out) - length - FOLLOWING - 1, asked.passages).astype(int)
        pieces = [(held_out[at : at + length], held_out[at + length : at + length + FOLLOWING]) for at in begins]
        plain = [mean_nats(model, *piece) for piece in pieces]
        for rate in map(float, asked.rates.split(",")):
            adapted, seconds = [], 0.0
            for prompt, following in pieces:
                learner = dynamic._Learner(model, rate, dynamic.DECAY)
                learner.squares, learner.segments = gathered.squares, gathered.segments
                learner._set_scales()
                began = time.monotonic()
                for _ in learner.learn_along(prompt):
                    pass
                seconds += time.monotonic() - began
                adapted.append(mean_nats(learner.model, prompt, following))  # type: ignore[arg-type]
            differences = np.subtract(adapted, plain)
            line = {
                "corpus": asked.corpus,
                "prompts": asked.prompts or asked.corpus,
                "minutes": asked.minutes,
                "units": asked.units,
                "length": length,
                "rate": rate,
                "passages": len(pieces),
                "plain": round(statistics.fmean(plain), 4),
                "difference": round(float(differences.mean()), 4),
                "error": round(float(differences.std(ddof=1)) / math.sqrt(len(pieces)), 4),
                "seconds_per_prompt": round(seconds / len(pieces), 2),
            }
            with LEDGER.open("a") as ledger:
                ledger.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def recipe_characters(data: Data, minutes: float, units: int) -> float:
    """The characters of the baseline's budget."""
    from untried import characters_of

    return characters_of(Feature(), planned(data, minutes, units), data, minutes, 1.0)


if __name__ == "__main__":
    main()
