"""A search for the options that learn a text best, by trials of a few minutes each.

Optuna proposes: its tree-structured Parzen estimator (Bergstra et al., 2011) learns from the trials so far which
options go together with a low loss. The first trial is the recipe that `train` would take, so that the best of them
all is never worse than that. Every trial is written into a journal at once; a search that was stopped goes on from it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from charwright.config import Recipe
from charwright.errors import DamagedRunError, RunError, UsageError
from charwright.storage import FORMAT, drop_cut_line, locked, write_file, write_json
from charwright.training.calibration import plan_here
from charwright.training.recipe_file import write_recipe
from charwright.training.recipes import Text
from charwright.training.trial import Hopeless, Outcome, Task

JOURNAL = "journal.jsonl"
NAME = "search"
STARTUP = 10  # trials at random before the estimator has enough to learn from
MARGIN = 1.15  # what a trial may take of its minutes, measuring included, as long as none was seen to take longer
COMPARED = 5  # trials to the end before one is given up for being worse than their median
KILLS = 2  # of the process in the middle of a trial, until another trial is proposed instead


def starting_recipe(task: Task, options: Mapping[str, Any]) -> Recipe:
    """The recipe that `train` would take for this text and these minutes: a plan, with the options given by hand."""
    text = Text.of(task.training_text, task.vocabulary)
    return plan_here(text, {"minutes": task.minutes, **options}, device=task.device, core=task.core).recipe


# What is searched.


def space(start: Recipe) -> dict[str, BaseDistribution]:
    """What is tried of each option; wide enough to hold the recipe that the search starts from.

    The share of streams that begin anew and that of the weights that are averaged stay as they are: what they do for a
    prompt, and late in training, no short trial can see.
    """
    model, sequences, training = start.model, start.sequences, start.training
    return {
        "cell": CategoricalDistribution(_with(["gru", "lstm"], model.cell)),
        "units": _whole(128, 1024, 64, model.units),
        "layers": _whole(1, 2, 1, model.layers),
        "embedding": _whole(32, 256, 32, model.embedding),
        "batch": CategoricalDistribution(_with([16, 32, 64], sequences.batch)),
        "seq_length": _whole(32, 128, 16, sequences.seq_length),
        "learning_rate": _logarithmic(5e-4, 2e-2, training.learning_rate),
        "dropout": FloatDistribution(0.0, 0.5, step=0.05),
        "state_dropout": FloatDistribution(0.0, 0.5, step=0.05),
        "weight_decay": _logarithmic(1e-3, 1.0, training.weight_decay),
    }


def _with(choices: list[Any], usual: Any) -> list[Any]:
    return choices if usual in choices else [*choices, usual]


def _whole(low: int, high: int, step: int, usual: int) -> IntDistribution:
    """Multiples of `step`, further down or up where the usual value lies there."""
    return IntDistribution(min(low, max(1, usual // step) * step), max(high, -(-usual // step) * step), step=step)


def _logarithmic(low: float, high: float, usual: float) -> FloatDistribution:
    return FloatDistribution(min(low, usual) if usual > 0 else low, max(high, usual), log=True)


def nearest(start: Recipe) -> dict[str, Any]:
    """The point of the space that is nearest to a recipe: where the estimator believes the first trial to be."""
    values = {**start.model.to_json(), **start.sequences.to_json(), **start.training.to_json()}
    return {name: _nearest(values[name], distribution) for name, distribution in space(start).items()}


def _nearest(value: Any, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return value
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    inside = min(max(value, distribution.low), distribution.high)
    if distribution.step is None:
        return inside
    steps = round((inside - distribution.low) / distribution.step)
    return type(value)(round(distribution.low + steps * distribution.step, 9))


def recipe_of_trial(start: Recipe, params: Mapping[str, Any]) -> Recipe:
    """The recipe to start from with what a trial changes of it; its numbers are rounded to what one would type."""
    options = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in params.items()}
    if start.model.tied:
        options["embedding"] = options["units"]
    return start.with_options(options)


# The trials.


@dataclass(frozen=True)
class Tried:
    """One trial that is over; `first` marks the recipe that the search started from."""

    number: int
    recipe: Recipe
    first: bool
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON: a row of the results."""
        recipe, outcome = self.recipe, self.outcome
        values = {**recipe.model.to_json(), **recipe.sequences.to_json(), **recipe.training.to_json()}
        complete = outcome.kind == "complete" and outcome.loss is not None
        return {
            "trial": self.number,
            "state": outcome.kind,
            "first": self.first,
            "validation_loss": outcome.loss if complete else None,
            "bits_per_char": outcome.loss / math.log(2) if complete and outcome.loss is not None else None,
            "given_up_at": round(outcome.fraction, 3) if outcome.kind == "pruned" else None,
            "why": outcome.why,
            "seconds": round(outcome.seconds, 1),
            "steps": outcome.steps,
            "chars_per_s": round(outcome.chars_per_s),
            "parameters": outcome.parameters,
            **{name: values[name] for name in space(recipe)},
        }


def by_loss(tried: Tried) -> float:
    """What the best trial has the least of."""
    done = tried.outcome.kind == "complete" and tried.outcome.loss is not None
    return tried.outcome.loss if done and tried.outcome.loss is not None else math.inf


Measure = Callable[[Recipe, Hopeless], Outcome]
"""Runs one trial; see `charwright.training.trial.run_trial`."""


@dataclass(frozen=True)
class Limits:
    """When a search is over: after so many seconds or trials, those before a stop included; None is no limit."""

    seconds: float | None = None
    trials: int | None = None


class Search:
    """A search in its folder: `search_in` opens one, `run` goes on with it."""

    def __init__(self, folder: Path, study: optuna.Study) -> None:
        """Hold what `search_in` has found or made."""
        self.folder, self.study = folder, study
        self.protocol: dict[str, Any] = study.user_attrs["protocol"]
        self.start = Recipe.from_json(study.user_attrs["start"], f"{folder / JOURNAL}: start")

    @property
    def spent_s(self) -> float:
        """Seconds of searching so far, over all sessions."""
        return float(self.study.user_attrs.get("spent_s", 0.0))

    def tried(self) -> list[Tried]:
        """The trials that are over, in their order; those that a stop cut off are not among them."""
        found = (self._tried(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished())
        return [tried for tried in found if tried is not None]

    def best(self) -> Tried | None:
        """The trial with the lowest validation loss; None as long as none is complete."""
        tried = min(self.tried(), key=by_loss, default=None)
        return tried if tried is not None and by_loss(tried) < math.inf else None

    def run(
        self,
        measure: Measure,
        limits: Limits,
        *,
        should_stop: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[Tried]:
        """Make trials until a limit is reached, or it should stop; yields each one that is over and prints nothing.

        A trial for which the time would not do is not begun: a shorter one could not be compared with the others.
        """
        self._clear_up()
        began, before_s = clock(), self.spent_s
        while not should_stop() and self._room_for_another(limits, before_s + clock() - began):
            try:
                outcome = self._one(measure)
            finally:
                self.study.set_user_attr("spent_s", before_s + clock() - began)
            self.write_results()
            if outcome.kind == "stopped":
                return
            yield self.tried()[-1]

    def write_results(self) -> None:
        """Write results.json, results.csv and best-recipe.json, each whole or not at all."""
        tried, best = self.tried(), self.best()
        rows = [trial.to_json() for trial in tried]
        results = {
            "format": FORMAT,
            "searched": self.protocol,
            "spent_s": round(self.spent_s, 1),
            "best": best.number if best else None,
            "trials": rows,
        }
        write_json(self.folder / "results.json", results)
        text = io.StringIO(newline="")
        if rows:
            table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        write_file(self.folder / "results.csv", text.getvalue().encode("utf-8"))
        if best:
            minutes = self.protocol["--minutes-per-trial"]
            note = f"{by_loss(best):.4f} nats per character after {minutes:g} minutes, the best of {len(tried)} trials"
            write_recipe(self.folder / "best-recipe.json", best.recipe, note)

    def _room_for_another(self, limits: Limits, spent_s: float) -> bool:
        """Whether one more trial fits: it may take as long as the longest so far."""
        tried = self.tried()
        if limits.trials is not None and len(tried) >= limits.trials:
            return False
        if limits.seconds is None:
            return True
        trial_s = 60 * float(self.protocol["--minutes-per-trial"])
        # The first one is begun if its minutes are there: a search without any would be none.
        needed_s = trial_s * (MARGIN if tried else 0.99)
        return spent_s + max([needed_s, *(trial.outcome.seconds for trial in tried)]) <= limits.seconds

    def _one(self, measure: Measure) -> Outcome:
        """Ask for a point, measure it, and tell what came out."""
        self.study.sampler = self._sampler()
        trial = self.study.ask(space(self.start))
        recipe = self._recipe(trial.params, trial.user_attrs)

        def hopeless(mark: int, loss: float) -> bool:
            trial.report(loss, mark)
            return trial.should_prune()

        try:
            outcome = measure(recipe, hopeless)
        except BaseException:
            self._tell(trial, Outcome("stopped"))
            raise
        self._tell(trial, outcome)
        return outcome

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Write down how a trial ended; one that was stopped counts for nothing and so will be proposed again."""
        if outcome.kind == "stopped":
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr("outcome", vars(outcome))
        if outcome.kind == "complete":
            self.study.tell(trial, outcome.loss)
        else:
            self.study.tell(trial, state=TrialState.PRUNED if outcome.kind == "pruned" else TrialState.FAIL)

    def _clear_up(self) -> None:
        """End the trial that a kill or a lost machine has cut off, and let the first recipe be tried if it was not."""
        for cut_off in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(cut_off.number, state=TrialState.FAIL)
            self.study.set_user_attr("kills", int(self.study.user_attrs.get("kills", 0)) + 1)
        firsts = [trial for trial in self.study.get_trials(deepcopy=False) if "first" in trial.user_attrs]
        if not any("outcome" in trial.user_attrs or trial.state == TrialState.WAITING for trial in firsts):
            self.study.enqueue_trial(nearest(self.start), user_attrs={"first": True})

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """A sampler for the next trial alone: it proposes the same whether or not the search was stopped before.

        What took its process down with it more than once is proposed no more: the machine may not bear it.
        """
        given_up = int(self.study.user_attrs.get("kills", 0)) // KILLS
        numbers = [int(self.protocol["--seed"]), len(self.tried()), given_up]
        seed = np.random.SeedSequence(numbers).generate_state(1)[0]
        return optuna.samplers.TPESampler(seed=int(seed), multivariate=True, n_startup_trials=STARTUP)

    def _recipe(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> Recipe:
        # The first trial is its recipe to the letter, not the nearest that the space has.
        return self.start if attributes.get("first") else recipe_of_trial(self.start, params)

    def _tried(self, trial: FrozenTrial) -> Tried | None:
        if "outcome" not in trial.user_attrs:
            return None
        recipe = self._recipe(trial.params, trial.user_attrs)
        return Tried(trial.number, recipe, "first" in trial.user_attrs, Outcome(**trial.user_attrs["outcome"]))


# The folder.


@contextmanager
def search_in(folder: Path, start: Callable[[], Recipe], protocol: Mapping[str, Any]) -> Iterator[Search]:
    """The search in a folder, begun or gone on with, for this process alone.

    Two at once would take each other's time, and what is compared here is what a model learns in a time.

    Args:
        folder: made where there is none.
        start: makes the recipe of the first trial, of a search that is new.
        protocol: what makes two trials comparable, by the option that says it; that of the text is `text`. Of its keys,
            `--seed` and `--minutes-per-trial` must be there.

    Raises:
        RunError: when the folder is something else, or another process searches in it.
        UsageError: when the search there has another protocol.
        DamagedRunError: when its journal cannot be read.
    """
    check_place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}; choose another with --out") from error
    with locked(folder / ".lock") as alone, quiet():
        if not alone:
            raise RunError(f"another process searches in {folder} now; wait for it, or choose another --out")
        yield _opened(folder, start, protocol)


def check_place(folder: Path) -> None:
    """See that a folder is free or holds a search.

    Raises:
        RunError: when it is something else.
    """
    if not folder.exists() or (folder / JOURNAL).is_file():
        return
    if not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir()):
        raise RunError(f"{folder} exists and is not a search; choose another place with --out")


def _opened(folder: Path, start: Callable[[], Recipe], protocol: Mapping[str, Any]) -> Search:
    path = folder / JOURNAL
    drop_cut_line(path)
    with suppress(OSError):  # One that a kill has left behind would be waited for.
        (folder / f"{JOURNAL}.lock").unlink()
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=COMPARED),
            load_if_exists=True,
        )
        attributes = study.user_attrs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRunError(f"{path} is damaged: {error!r}; begin again with another --out") from error
    if "protocol" not in attributes:
        study.set_user_attr("start", start().to_json())
        study.set_user_attr("protocol", dict(protocol))
    _check_protocol(folder, study.user_attrs["protocol"], protocol)
    return Search(folder, study)


def _check_protocol(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # What is read back has been JSON, which knows no tuples.
    for name, value in json.loads(json.dumps(dict(now))).items():
        if there.get(name) == value:
            continue
        if name == "text":
            raise UsageError(f"{folder} is a search for another text; choose another place with --out")
        raise UsageError(
            f"{folder} is a search with {name} {_word(there.get(name))}, not {_word(value)}, whose trials could not be"
            " compared with new ones; choose another place with --out"
        )


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing meanwhile: what it would say is said in our own words, or is nobody's concern."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
