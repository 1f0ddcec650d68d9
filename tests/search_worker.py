"""A worker of a shared search with trials that only sleep: `search_worker.py FOLDER STORAGE TRIALS SECONDS`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from charwright.config import Recipe
from charwright.planning.recipes import DEFAULT
from charwright.tuning.search import Limits
from charwright.tuning.shared import Patience, shared_search
from charwright.tuning.trial import Outcome, ShouldPrune

START = DEFAULT.with_options({"minutes": 2.0})
PROTOCOL = {"text": "abc", "--minutes-per-trial": 2.0, "--seed": 1, "--threads": 1}
QUICK = Patience(beat_s=0.1, dead_s=2.0, poll_s=0.05)


def loss_of(recipe: Recipe) -> float:
    return 1 + abs(recipe.model.units - 1024) / 1000 + recipe.model.dropout


def main() -> None:
    folder, spec, trials, seconds = sys.argv[1:]

    def run_trial(recipe: Recipe, should_prune: ShouldPrune) -> Outcome:
        print(f"trial {recipe.model.units}", flush=True)
        time.sleep(float(seconds))
        return Outcome("complete", loss_of(recipe), 1.0, seconds=float(seconds))

    with shared_search(Path(folder), spec, "novel", lambda: START, PROTOCOL, patience=QUICK) as search:
        for result in search.run(run_trial, Limits(trials=int(trials))):
            print(f"done {result.number}", flush=True)


if __name__ == "__main__":
    main()
