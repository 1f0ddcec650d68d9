"""A search for the options that train best on a text, in trials of a few minutes each.

Optuna's tree-structured Parzen estimator (Bergstra et al., 2011) proposes options from the trials so far. The first
trial is the recipe that `train` would use, so the best trial is never worse than that. Every trial is journaled at
once; a search that was stopped continues from its journal.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from charwright.config import Recipe
from charwright.errors import DamagedRunError
from charwright.planning.recipe_file import write_recipe
from charwright.storage import FORMAT, read_json, write_file, write_json
from charwright.tuning.space import nearest_point, recipe_of_trial, search_space
from charwright.tuning.study import open_study
from charwright.tuning.trial import Outcome, ShouldPrune

RESULTS = "results.json"
STARTUP = 10  # random trials before the estimator has enough to learn from
MARGIN = 1.15  # the time a trial may take in units of its minutes, evaluation included, until a longer one is seen
KILLS = 2  # kills of the process within a trial until another trial is proposed instead


@dataclass(frozen=True)
class TrialResult:
    """A trial that is over; `first` marks the recipe the search started from."""

    number: int
    recipe: Recipe
    first: bool
    outcome: Outcome

    @property
    def loss(self) -> float:
        """The validation loss of a complete trial; infinite for the others."""
        complete = self.outcome.kind == "complete" and self.outcome.loss is not None
        return self.outcome.loss if complete and self.outcome.loss is not None else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON: a row of the results."""
        recipe, outcome = self.recipe, self.outcome
        values = {**recipe.model.to_json(), **recipe.sequences.to_json(), **recipe.training.to_json()}
        complete = self.loss < math.inf
        return {
            "trial": self.number,
            "state": outcome.kind,
            "first": self.first,
            "validation_loss": self.loss if complete else None,
            "bits_per_char": self.loss / math.log(2) if complete else None,
            "given_up_at": round(outcome.fraction, 3) if outcome.kind == "pruned" else None,
            "why": outcome.why,
            "seconds": round(outcome.seconds, 1),
            "steps": outcome.steps,
            "chars_per_s": round(outcome.chars_per_s),
            "parameters": outcome.parameters,
            **{name: values[name] for name in search_space(recipe)},
        }


RunTrial = Callable[[Recipe, ShouldPrune], Outcome]
"""Runs one trial; see `charwright.tuning.trial.run_trial`."""


@dataclass(frozen=True)
class Limits:
    """When a search ends: after this many seconds or trials, earlier sessions included; None is no limit."""

    seconds: float | None = None
    trials: int | None = None


class Search:
    """A search in its folder: `search_in` opens one, `run` continues it."""

    def __init__(self, folder: Path, study: optuna.Study) -> None:
        """Hold what `search_in` opened."""
        self.folder, self.study, self.named = folder, study, str(folder)
        self.protocol: dict[str, Any] = study.user_attrs["protocol"]
        self.start = Recipe.from_json(study.user_attrs["start"], f"{folder}: start")

    @property
    def spent_s(self) -> float:
        """Seconds of searching so far, over all sessions."""
        return float(self.study.user_attrs.get("spent_s", 0.0))

    @property
    def compute(self) -> dict[str, Any] | None:
        """How the trials compute, as `keep_compute` kept it; None in a search that has not kept it."""
        kept: dict[str, Any] | None = self.study.user_attrs.get("compute")
        return kept

    def keep_compute(self, record: Mapping[str, Any]) -> None:
        """Keep how the trials compute, for when the search continues."""
        if record != self.compute:
            self.study.set_user_attr("compute", dict(record))

    def results(self) -> list[TrialResult]:
        """The trials that are over, in order, without those that were interrupted."""
        found = (self._result(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished())
        return [result for result in found if result is not None]

    def best(self) -> TrialResult | None:
        """The trial with the lowest validation loss; None until one is complete."""
        result = min(self.results(), key=lambda result: result.loss, default=None)
        return result if result is not None and result.loss < math.inf else None

    def run(
        self,
        run_trial: RunTrial,
        limits: Limits,
        *,
        should_stop: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Iterator[TrialResult]:
        """Run trials until a limit is reached or it should stop; yields each finished one and prints nothing.

        A trial that would not fit into the remaining time is not started: a shorter one could not be compared.
        """
        self._recover()
        self._check_whole()
        self.write_results()  # A search that is stopped before its first trial has results too: none.
        began, before_s = clock(), self.spent_s
        while not should_stop() and self._fits(limits, before_s + clock() - began):
            try:
                outcome = self._run_one(run_trial)
            finally:
                self.study.set_user_attr("spent_s", before_s + clock() - began)
            self.write_results()
            if outcome.kind == "stopped":
                return
            yield self.results()[-1]

    def write_results(self) -> None:
        """Write results.json, results.csv and best-recipe.json, each atomically."""
        results, best = self.results(), self.best()
        rows = [result.to_json() for result in results]
        values = {
            "format": FORMAT,
            "searched": self.protocol,
            "spent_s": round(self.spent_s, 1),
            "best": best.number if best else None,
            "trials": rows,
        }
        write_json(self.folder / RESULTS, values)
        text = io.StringIO(newline="")
        if rows:
            table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        write_file(self.folder / "results.csv", text.getvalue().encode("utf-8"))
        if best:
            minutes = self.protocol["--minutes-per-trial"]
            trials = f"{len(results)} trial{'s' * (len(results) > 1)}"
            note = f"{best.loss:.4f} nats per character after {minutes:g} minutes, the best of {trials}"
            write_recipe(self.folder / "best-recipe.json", best.recipe, note)

    def _fits(self, limits: Limits, spent_s: float) -> bool:
        """Whether one more trial fits into the limits; it may take as long as the longest so far."""
        results = self.results()
        if limits.trials is not None and len(results) >= limits.trials:
            return False
        if limits.seconds is None:
            return True
        trial_s = 60 * float(self.protocol["--minutes-per-trial"])
        # The first trial only needs its minutes: a search without any trial is useless.
        needed_s = trial_s * (MARGIN if results else 0.99)
        return spent_s + max([needed_s, *(result.outcome.seconds for result in results)]) <= limits.seconds

    def _run_one(self, run_trial: RunTrial) -> Outcome:
        """Ask for a point, run its trial, and record the outcome."""
        self.study.sampler = self._sampler()
        return self._run_trial(self.study.ask(self._space()), run_trial)

    def _space(self) -> dict[str, BaseDistribution]:
        """What is searched. The cells of a study stay those of its first trial: it refuses others later."""
        trials = self.study.get_trials(deepcopy=False)
        kept = (trial.distributions["cell"] for trial in trials if "cell" in trial.distributions)
        space = search_space(self.start)
        return space | {"cell": next(kept, space["cell"])}

    def _run_trial(self, trial: optuna.Trial, run_trial: RunTrial) -> Outcome:
        recipe = self._recipe(trial.params, trial.user_attrs)

        def should_prune(mark: int, loss: float) -> bool:
            trial.report(loss, mark)
            return trial.should_prune()

        try:
            outcome = run_trial(recipe, should_prune)
        except BaseException:
            self._record(trial, Outcome("stopped"))
            raise
        self._record(trial, outcome)
        return outcome

    def _record(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Record how a trial ended; one that was stopped does not count and is proposed again."""
        if outcome.kind == "stopped":
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr("outcome", vars(outcome))
        self._tell(trial.number, outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        if outcome.kind == "complete":
            self.study.tell(number, outcome.loss)
        else:
            self.study.tell(number, state=TrialState.PRUNED if outcome.kind == "pruned" else TrialState.FAIL)

    def _recover(self) -> None:
        """End a trial that a kill interrupted, and enqueue the first recipe if it was never completed."""
        for interrupted in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "outcome" in interrupted.user_attrs:  # The kill came between the outcome and the end of the trial.
                self._tell(interrupted.number, Outcome.from_json(interrupted.user_attrs["outcome"], self.named))
                continue
            self.study.tell(interrupted.number, state=TrialState.FAIL)
            self.study.set_user_attr("kills", int(self.study.user_attrs.get("kills", 0)) + 1)
        firsts = [trial for trial in self.study.get_trials(deepcopy=False) if "first" in trial.user_attrs]
        if not any("outcome" in trial.user_attrs or trial.state == TrialState.WAITING for trial in firsts):
            self.study.enqueue_trial(nearest_point(self.start), user_attrs={"first": True})

    def _check_whole(self) -> None:
        """Check that the journal has all trials that were written to the results.

        Raises:
            DamagedRunError: when it was cut.
        """
        path = self.folder / RESULTS
        try:
            found = read_json(path).get("trials")
        except (DamagedRunError, AttributeError):
            return  # They are written anew.
        known = len(self.results())
        if isinstance(found, list) and len(found) > known:
            raise DamagedRunError(
                f"{self.folder} has lost trials: {path.name} has {len(found)}, and the study {known}; start a new "
                "search with another --out"
            )

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """A sampler for the next trial only, which proposes the same whether or not the search was interrupted.

        A trial that has taken its process down repeatedly is not proposed again: it may exceed the machine.
        """
        skipped = int(self.study.user_attrs.get("kills", 0)) // KILLS
        numbers = [int(self.protocol["--seed"]), len(self.results()), skipped]
        seed = np.random.SeedSequence(numbers).generate_state(1)[0]
        return optuna.samplers.TPESampler(seed=int(seed), multivariate=True, n_startup_trials=STARTUP)

    def _recipe(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> Recipe:
        # The first trial is exactly its recipe, not the nearest point of the space.
        return self.start if attributes.get("first") else recipe_of_trial(self.start, params)

    def _result(self, trial: FrozenTrial) -> TrialResult | None:
        if "outcome" not in trial.user_attrs:
            return None
        recipe = self._recipe(trial.params, trial.user_attrs)
        return TrialResult(
            trial.number,
            recipe,
            "first" in trial.user_attrs,
            Outcome.from_json(trial.user_attrs["outcome"], self.named),
        )


@contextmanager
def search_in(folder: Path, start: Callable[[], Recipe], protocol: Mapping[str, Any]) -> Iterator[Search]:
    """The search in a folder, new or continued; arguments and errors as for `open_study`."""
    with open_study(folder, start, protocol) as study:
        yield Search(folder, study)
