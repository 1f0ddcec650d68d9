"""Would a model write better if it first learned from its prompt, as in dynamic evaluation?

    python experiments/untried_adaptation.py --corpus docs-2m --prompts docs-2m,shakespeare --minutes 0.25 --units 256

trains the baseline of untried.py on a text. Then it takes passages from a held-out text: a prompt, and what follows it.
What follows is scored by the model that has read the prompt, and by a copy that has also trained on it, with the rule
and the rates of `charwright evaluate --dynamic`. The passages are the same for both, so the standard error is paired.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from charwright.evaluation import dynamic
from charwright.evaluation.readers import ModelReader
from charwright.model.compute import keep_memory
from untried import Data, Training, characters_of, planned
from untried_features import Feature, Net

LEDGER = Path(__file__).with_name("untried_adaptation.jsonl")
FOLLOWING = 1000


def mean_nats(model: Net, prompt: dynamic.Ids, following: dynamic.Ids) -> float:
    """The loss of what follows a prompt, in nats per character."""
    ids = np.concatenate([prompt, following]).astype(np.int64)[:, None]
    nats, _ = ModelReader(model).continued_nats(ids[:-1], ids[1:], None)
    return float(nats[len(prompt) - 1 :].mean())


def compared(
    model: Net, gathered: dynamic._Learner, held_out: dynamic.Ids, length: int, rate: float, passages: int
) -> dict[str, Any]:
    """The loss after prompts of a length, and the difference that learning from them makes."""
    begins = np.linspace(0, len(held_out) - length - FOLLOWING - 1, passages).astype(int)
    plain, adapted, seconds = [], [], 0.0
    for at in begins:
        prompt, following = held_out[at : at + length], held_out[at + length : at + length + FOLLOWING]
        learner = dynamic._Learner(model, rate, dynamic.DECAY)
        learner.squares, learner.segments = gathered.squares, gathered.segments
        learner._set_scales()
        began = time.process_time()
        for _ in learner.learn_along(prompt):
            pass
        seconds += time.process_time() - began
        plain.append(mean_nats(model, prompt, following))
        adapted.append(mean_nats(learner.model, prompt, following))
    differences = np.subtract(adapted, plain)
    return {
        "length": length,
        "rate": rate,
        "passages": passages,
        "plain": round(statistics.fmean(plain), 4),
        "difference": round(float(differences.mean()), 4),
        "error": round(float(differences.std(ddof=1)) / math.sqrt(passages), 4),
        "seconds": round(seconds / passages, 2),
    }


def main() -> None:
    """Train, compare over the passages, and add a line for each text, length and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="shakespeare", help="the text to train on")
    parser.add_argument("--prompts", default="", help="texts that the passages are from (default: the same)")
    parser.add_argument("--minutes", type=float, default=0.25)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--lengths", default="500,4000", help="characters of a prompt, separated by commas")
    parser.add_argument("--rates", default="0.0003,0.001", help="rates of learning, separated by commas")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    data = Data(asked.corpus)
    recipe = planned(data, asked.minutes, asked.units, "adamw")
    training = Training(Feature(), data, recipe, characters_of(Feature(), recipe, data, asked.minutes, 1.0), 1)
    training.run()
    model: Any = training.model
    gathered = dynamic._Learner(model, 0.0, dynamic.DECAY)
    gathered.gather(data.ids)
    for prompts in (asked.prompts or asked.corpus).split(","):
        held_out = data.vocabulary.encode(Data(prompts).held_out)
        for length, rate in itertools.product(asked.lengths.split(","), asked.rates.split(",")):
            found = compared(model, gathered, held_out, int(length), float(rate), asked.passages)
            line = {"corpus": asked.corpus, "prompts": prompts, "minutes": asked.minutes, "units": asked.units, **found}
            with LEDGER.open("a") as ledger:
                ledger.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
