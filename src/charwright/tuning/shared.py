"""A search by several workers, on one machine or many, in one study. Workers may come, go and die.

A worker that runs a trial changes its `beat` every few seconds. The others watch the beats by their own clocks, so no
two clocks have to agree. A trial whose beat stands still is ended, and its options are enqueued again; if its worker
was only slow, what it tells later is discarded. Everything is derived from the trials themselves, whose order all
workers agree on:

- The `settings` of the first trial that has any are those of the study.
- A trial that repeats another has the number of that one in `of`. If two workers enqueue the same repetition, the one
  with the higher number is dropped.
- A trial counts if fewer than `--trials` trials before it do.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from charwright.config import Recipe
from charwright.storage import FORMAT, write_json
from charwright.tuning.search import KILLS, STARTUP, Limits, RunTrial, Search, TrialResult
from charwright.tuning.space import nearest_point
from charwright.tuning.storages import open_storage, shown
from charwright.tuning.study import MARKER, new_study, quiet, refuse_other_protocol, searching_alone
from charwright.tuning.trial import Outcome

FIRST = "first"  # `of` for the trial of the recipe that the search starts from


@dataclass(frozen=True)
class Patience:
    """Seconds between the beats of a worker, and until one whose beat stands still counts as dead."""

    beat_s: float = 10.0
    dead_s: float = 60.0
    poll_s: float = 2.0  # between two looks at the trials of others, when there is nothing else to do


class SharedSearch(Search):
    """A worker of a search: `shared_search` opens one, `run` takes part."""

    def __init__(self, folder: Path, study: optuna.Study, spec: str, patience: Patience) -> None:
        """Hold what `shared_search` opened."""
        super().__init__(folder, study)
        self.named = f"the study {study.study_name!r} in {shown(spec)}"
        self.patience = patience
        self._worker = f"{platform.node()}:{folder.resolve()}"
        self._beats: dict[int, tuple[Any, float]] = {}

    @property
    def spent_s(self) -> float:
        """Seconds of searching so far, over all workers."""
        return sum(float(value) for name, value in self.study.user_attrs.items() if name.startswith("spent_s "))

    def run(
        self,
        run_trial: RunTrial,
        limits: Limits,
        *,
        should_stop: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Iterator[TrialResult]:
        """Run trials until a limit is reached or it should stop; yields each that this worker finished.

        The hours are those of this worker; the trials are those of all. A worker that could only start one too many
        waits for the trials of the others, in case one of them dies.
        """
        self.write_results()
        key = f"spent_s {self._worker}"
        began, before_s = clock(), float(self.study.user_attrs.get(key, 0.0))
        while not should_stop():
            self.recover(clock())
            spent_s = before_s + clock() - began
            if self._enough(limits) or not self._fits(Limits(limits.seconds), spent_s):
                break
            if (trial := self._claimed(limits)) is None:
                time.sleep(self.patience.poll_s)
                continue
            with self._beating(trial):
                outcome = self._run_trial(trial, run_trial)
            self.study.set_user_attr(key, before_s + clock() - began)
            self.write_results()
            if outcome.kind == "stopped":
                return
            yield from (result for result in self.results() if result.number == trial.number)
        self.write_results()

    def recover(self, now_s: float) -> None:
        """End the trials of workers that have died, and enqueue again what was not completed."""
        for trial in self._trials(TrialState.RUNNING):
            beat, since_s = self._beats.get(trial.number, (None, now_s))
            if trial.number not in self._beats or beat != trial.user_attrs.get("beat"):
                self._beats[trial.number] = trial.user_attrs.get("beat"), now_s
            elif now_s - since_s >= self.patience.dead_s:
                with _unless_finished():
                    self._bury(trial)
        repeated = {trial.user_attrs.get("of") for trial in self._trials()}
        for trial in self._trials(TrialState.FAIL):
            if trial.number not in repeated and not {"outcome", "dropped"} & set(trial.user_attrs):
                self._repeat(trial)
        if FIRST not in repeated:  # Its worker died before it could enqueue it.
            self.study.enqueue_trial(nearest_point(self.start), user_attrs={"first": True, "of": FIRST})

    def _bury(self, trial: FrozenTrial) -> None:
        """End the trial of a dead worker, with the outcome that it may have had time to write."""
        number, kills = trial.number, int(trial.user_attrs.get("kills", 0)) + 1
        if "outcome" not in trial.user_attrs and kills >= KILLS:  # It may exceed every machine.
            outcome = Outcome("failed", why=f"its process died {kills} times")
            self.study._storage.set_trial_user_attr(trial._trial_id, "outcome", vars(outcome))
            self._tell(number, outcome)
        elif "outcome" in trial.user_attrs:
            self._tell(number, Outcome.from_json(trial.user_attrs["outcome"], self.named))
        else:
            self.study._storage.set_trial_user_attr(trial._trial_id, "kills", kills)
            self.study.tell(number, state=TrialState.FAIL)

    def _repeat(self, trial: FrozenTrial) -> None:
        first = "first" in trial.user_attrs
        attributes: dict[str, Any] = {"of": trial.number}
        attributes |= {name: trial.user_attrs[name] for name in ("first", "kills") if name in trial.user_attrs}
        point = nearest_point(self.start) if first else trial.params
        self.study.enqueue_trial(point, user_attrs=attributes)

    def _enough(self, limits: Limits) -> bool:
        return limits.trials is not None and len(self.results()) >= limits.trials

    def _claimed(self, limits: Limits) -> optuna.Trial | None:
        """A trial for this worker; None if all that are wanted are being run by others."""
        most = limits.trials
        busy = len(self._trials(TrialState.RUNNING))
        if most is not None and busy and len(self.results()) + busy >= most:
            return None
        self.study.sampler = self._sampler()
        trial = self.study.ask(self._space())
        before = [other for other in self._trials() if other.number < trial.number]
        of = trial.user_attrs.get("of")
        repeated_twice = of is not None and any(other.user_attrs.get("of") == of for other in before)
        if repeated_twice or (most is not None and sum(map(_counts, before)) >= most):
            trial.set_user_attr("dropped", True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    def _record(self, trial: optuna.Trial, outcome: Outcome) -> None:
        with _unless_finished():  # The others have given it up, and one of them repeats it.
            super()._record(trial, outcome)

    @contextmanager
    def _beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Change the trial's beat in a thread as long as the block lasts."""
        over = threading.Event()

        def beat() -> None:
            number = 0
            while not over.wait(self.patience.beat_s):
                number += 1
                # A storage that is out of reach for a moment is tried again at the next beat.
                with suppress(Exception):
                    self.study._storage.set_trial_user_attr(trial._trial_id, "beat", f"{os.getpid()} {number}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """A sampler for the next trial only. Workers that see the same trials must not propose the same options."""
        worker = int.from_bytes(os.urandom(8), "little")
        seed = np.random.SeedSequence([int(self.protocol["--seed"]), worker]).generate_state(1)[0]
        return optuna.samplers.TPESampler(
            seed=int(seed), multivariate=True, n_startup_trials=STARTUP, constant_liar=True
        )


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial has an outcome, or may still get one."""
    if "dropped" in trial.user_attrs:
        return False
    return "outcome" in trial.user_attrs or not trial.state.is_finished()


@contextmanager
def _unless_finished() -> Iterator[None]:
    """Do nothing about a trial that another worker has ended meanwhile."""
    try:
        yield
    except UpdateFinishedTrialError:
        pass
    except ValueError as error:
        if "Cannot tell" not in str(error):
            raise


@contextmanager
def shared_search(
    folder: Path,
    spec: str,
    name: str,
    start: Callable[[], Recipe],
    protocol: Mapping[str, Any],
    compute: Callable[[], Mapping[str, Any] | None] = lambda: None,
    *,
    patience: Patience | None = None,
) -> Iterator[SharedSearch]:
    """A worker of the study `name` in a storage; the results so far are written to its folder.

    Args:
        folder: of this worker alone; created if it does not exist.
        spec: the address of a database, or a journal file.
        name: of the study; created if it does not exist.
        start: makes the recipe of the first trial of a new study.
        protocol: what makes two trials comparable; see `open_study`.
        compute: how the trials compute, after `start` was called.
        patience: when a worker counts as dead.

    Raises:
        RunError: when the storage or the folder cannot be used.
        UsageError: when the study has another protocol.
    """

    def settings() -> tuple[Recipe, dict[str, Any]]:
        recipe = start()
        kept = compute()
        values = {"start": recipe.to_json(), "protocol": dict(protocol)}
        return recipe, values | ({"compute": dict(kept)} if kept else {})

    with searching_alone(folder, shared=True), quiet(), open_storage(spec) as storage:
        study = new_study(storage, name)
        _settle(study, settings)
        search = SharedSearch(folder, study, spec, patience or Patience())
        refuse_other_protocol(search.named, search.protocol, protocol, "--study")
        write_json(folder / MARKER, {"format": FORMAT, "storage": shown(spec), "study": name})
        yield search


def _settle(study: optuna.Study, settings: Callable[[], tuple[Recipe, dict[str, Any]]]) -> None:
    """Check that the study has settings, the same for all workers even if several of them begin it at once."""
    if "start" in study.user_attrs:
        return
    if _first_settings(study) is None:
        recipe, values = settings()
        attributes = {"first": True, "of": FIRST, "settings": values}
        study.enqueue_trial(nearest_point(recipe), user_attrs=attributes)
    settled = _first_settings(study)
    assert settled is not None
    for key in sorted(settled):  # `start` is the last: it is there only if all are, even after a kill.
        study.set_user_attr(key, settled[key])


def _first_settings(study: optuna.Study) -> dict[str, Any] | None:
    trials = study.get_trials(deepcopy=False)
    found: dict[str, Any] | None = next((t.user_attrs["settings"] for t in trials if "settings" in t.user_attrs), None)
    return found
