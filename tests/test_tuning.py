"""The search for options: proposals, comparisons, interruptions, and a real trial."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution

from charwright.config import ModelConfig, Recipe, SequenceConfig, TrainingConfig
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, DamagedRunError, DivergedError, RunError, UsageError
from charwright.evaluation.evaluate import evaluate
from charwright.model.compute import Compute, Wanted
from charwright.model.language_model import LanguageModel
from charwright.planning.choice import Choice
from charwright.planning.plan import make_plan
from charwright.planning.profile import TextProfile
from charwright.planning.recipe_file import read_recipe
from charwright.planning.recipes import DEFAULT
from charwright.run_config import ComputeRecord
from charwright.training.events import Epoch, Event, Validation
from charwright.training.loop import fit
from charwright.tuning import search as search_module
from charwright.tuning import space as space_module
from charwright.tuning import start as start_module
from charwright.tuning import trial as trial_module
from charwright.tuning.search import Limits, Search, TrialResult, search_in
from charwright.tuning.space import nearest_point, recipe_of_trial, search_space
from charwright.tuning.start import Start
from charwright.tuning.trial import (
    MARKS,
    PROBE_LENGTH,
    PROBE_PIECES,
    LossCurve,
    Outcome,
    ShouldPrune,
    Task,
    probe,
    run_trial,
)
from charwright.workflow.computing import record_of
from commands import TEXT

START = DEFAULT.with_options({"minutes": 2.0})
PROTOCOL = {"text": "abc", "--minutes-per-trial": 2.0, "--seed": 1, "--threads": 1}


class Clock:
    """A clock that advances by `tick` at each call."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def loss_of(recipe: Recipe) -> float:
    """A synthetic loss with its minimum far from the starting recipe."""
    model, training = recipe.model, recipe.training
    rate = math.log(training.learning_rate / 1.5e-2)
    return 1 + 0.2 * rate**2 + abs(model.units - 1024) / 1000 + model.dropout + (model.cell != "lstm")


class FakeTrials:
    """Runs trials by a loss function, each in two minutes of a fake clock; `then` may replace an outcome."""

    def __init__(self, clock: Clock, losses: Callable[[Recipe], float] = loss_of) -> None:
        self.clock, self.losses = clock, losses
        self.recipes: list[Recipe] = []
        self.then: Callable[[int], Outcome | None] = lambda _: None

    def __call__(self, recipe: Recipe, should_prune: ShouldPrune) -> Outcome:
        self.recipes.append(recipe)
        self.clock.now += 120
        if (other := self.then(len(self.recipes))) is not None:
            return other
        loss = self.losses(recipe)
        for mark in range(len(MARKS)):
            if should_prune(mark, loss + 0.1 * (len(MARKS) - mark)):
                return Outcome("pruned", loss, MARKS[mark], seconds=120 * MARKS[mark])
        return Outcome("complete", loss, 1.0, steps=9, seconds=120, chars_per_s=5.0, parameters=3)


def searched(
    folder: Path, trials: int, trials_run: FakeTrials | None = None, start: Recipe = START, **protocol: Any
) -> tuple[list[TrialResult], FakeTrials]:
    """Search until there are this many trials."""
    trials_run = trials_run or FakeTrials(Clock())
    with search_in(folder, lambda: start, PROTOCOL | protocol) as search:
        list(search.run(trials_run, Limits(trials=trials), clock=trials_run.clock))
        return search.results(), trials_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tune" / "hamlet"


# The search space.


def test_the_first_trial_is_the_recipe_that_train_would_use(folder: Path) -> None:
    odd = START.with_options({"units": 700, "weight_decay": 0.0, "state_reset": 0.07})
    results, trials_run = searched(folder, 3, start=odd)
    assert trials_run.recipes[0] == results[0].recipe == odd
    assert [result.first for result in results] == [True, False, False]
    assert all(recipe.training.state_reset == 0.07 for recipe in trials_run.recipes)


def test_the_space_contains_any_starting_recipe() -> None:
    odd = Recipe(
        model=ModelConfig(cell="rnn", units=2050, layers=3, embedding_size=7, dropout=0.33),
        sequences=SequenceConfig(batch=5, seq_length=200),
        training=TrainingConfig(learning_rate=0.5, weight_decay=0.0),
    )
    for start in (START, odd, Recipe()):
        point = nearest_point(start)
        for name, distribution in search_space(start).items():
            assert distribution._contains(distribution.to_internal_repr(point[name])), name
    assert recipe_of_trial(START, nearest_point(START)) == START
    cells = search_space(odd)["cell"]
    assert isinstance(cells, CategoricalDistribution)
    assert cells.choices == ("igru", "lstm", "rnn")


def test_floats_are_rounded_to_three_digits() -> None:
    params = nearest_point(START) | {"learning_rate": 0.00123456}
    assert recipe_of_trial(START, params).training.learning_rate == 0.00123


def test_a_tied_embedding_stays_as_wide_as_the_layer() -> None:
    tied = START.with_options({"tied": True, "embedding_size": 512})
    assert recipe_of_trial(tied, nearest_point(tied) | {"units": 256}).model.embedding_size == 256


def test_the_starting_recipe_is_planned_for_the_text_and_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {128: 90_000.0, 512: 20_000.0}
    planned = Choice(Compute(core="fused"))
    monkeypatch.setattr(start_module, "plan_here", lambda text, options, _: (make_plan(text, options, speeds), planned))
    recipe = Start(task(), {"min_count": 3, "seed": 7}, Wanted()).recipe()
    text = TextProfile.of(task().training_text, task().vocabulary)
    assert recipe == make_plan(text, {"minutes": task().minutes, "min_count": 3, "seed": 7}, speeds).recipe
    assert (recipe.training.minutes, recipe.vocabulary.min_count, recipe.training.seed) == (task().minutes, 3, 7)


def test_all_trials_of_a_search_compute_as_its_start_chose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Choice(Compute(core="fused", threads=1), {"fused f32": 5, "native f32 avx2": 3})
    plan = make_plan(TextProfile.of(TEXT, task().vocabulary), {"minutes": 1.0}, {512: 1e5})
    monkeypatch.setattr(start_module, "plan_here", lambda *_: (plan, chosen))

    def compute(wanted: Wanted) -> Compute:
        start = Start(task(), {}, wanted)
        with search_in(folder, start.recipe, PROTOCOL) as search:
            return start.task_of(search).compute

    assert compute(Wanted()) == chosen.compute
    monkeypatch.setattr(start_module, "plan_here", None)
    assert compute(Wanted()) == chosen.compute, "the search continues without planning or choosing again"
    for wanted, named in (
        (Wanted(core="torch"), r"not on the cpu by the torch core in f32"),
        (Wanted(precision="bf16"), r"not on the cpu by the fused core in bf16"),
    ):
        with pytest.raises(UsageError, match=rf"compute on the cpu by the fused core in f32; {named}, and trials"):
            compute(wanted)
    assert compute(Wanted()) == chosen.compute, "a refusal changes nothing"


@pytest.mark.parametrize(
    "record",
    [
        ComputeRecord("cpu", "native", "f32", "avx1024"),
        ComputeRecord("cuda", "torch", "f32", None),
    ],
    ids=str,
)
def test_a_search_that_cannot_compute_as_it_did_is_refused(
    folder: Path, record: ComputeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with search_in(folder, lambda: START, PROTOCOL) as search:
        search.keep_compute(record.to_json())
        with pytest.raises(UsageError, match="; that is not possible here, and trials") as refused:
            Start(task(), {}, Wanted("cpu" if record.device == "cpu" else "auto")).task_of(search)
        assert f"compute on {record}; " in str(refused.value)
        assert "\n" not in str(refused.value)
        assert search.compute == record.to_json()


def test_a_search_of_an_earlier_version_goes_on_with_its_core(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It kept the core that `auto` selected, and nothing else about how it computes."""
    searched(folder, 1, **{"--core": "torch"})
    monkeypatch.setattr(start_module, "choose_here", None)
    for core in ("auto", "torch"):
        with search_in(folder, lambda: START, PROTOCOL | {"--core": core}) as search:
            assert Start(task(), {}, Wanted("cpu", core)).task_of(search).compute == Compute.choose("cpu", "torch")
    with (
        pytest.raises(UsageError, match="with `core` torch, not fused"),
        search_in(folder, lambda: START, PROTOCOL | {"--core": "fused"}),
    ):
        pass


def test_a_search_that_was_stopped_before_its_choice_chooses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with search_in(folder, lambda: START, PROTOCOL | {"--core": "auto"}):
        pass
    choice = Choice(Compute(core="fused"), {"fused f32": 5})
    monkeypatch.setattr(start_module, "choose_here", lambda *_: choice)
    with search_in(folder, lambda: START, PROTOCOL | {"--core": "auto"}) as search:
        assert Start(task(), {}, Wanted("cpu")).task_of(search).compute == choice.compute
        assert search.compute == record_of(choice).to_json()


# Results.


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[TrialResult]:
    return searched(tmp_path_factory.mktemp("many"), 28)[0]


def test_the_search_improves_on_its_start(many: list[TrialResult]) -> None:
    best = min(trial.outcome.loss or 9 for trial in many if trial.outcome.kind == "complete")
    assert best < loss_of(START) - 1
    assert {trial.outcome.kind for trial in many} == {"complete", "pruned"}


def test_the_estimator_learns_from_the_trials(many: list[TrialResult]) -> None:
    losses = [loss_of(trial.recipe) for trial in many[1:]]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_results_are_written_after_each_trial(folder: Path) -> None:
    trials_run = FakeTrials(Clock())
    trials_run.then = lambda number: Outcome("failed", why="it diverged") if number == 2 else None
    with search_in(folder, lambda: START, PROTOCOL) as search:
        for number, result in enumerate(search.run(trials_run, Limits(trials=4), clock=trials_run.clock)):
            written = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            assert written["trials"][-1] == result.to_json()
            assert len(written["trials"]) == number + 1
            best = search.best()
            assert best is not None
            assert written["best"] == best.number
            assert read_recipe(folder / "best-recipe.json") == best.recipe
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete", "failed", "complete", "complete"]
    assert rows[1]["validation_loss"] == ""
    assert float(rows[0]["validation_loss"]) == pytest.approx(loss_of(START))
    assert float(rows[0]["bits_per_char"]) == pytest.approx(loss_of(START) / math.log(2))
    assert int(rows[0]["units"]) == START.model.units
    assert {path.name for path in folder.iterdir()} == {
        "journal.jsonl",
        "results.json",
        "results.csv",
        "best-recipe.json",
        ".lock",
    }


def test_a_failed_trial_counts_but_is_never_the_best(folder: Path) -> None:
    trials_run = FakeTrials(Clock())
    trials_run.then = lambda _: Outcome("failed", why="it diverged")
    results, _ = searched(folder, 3, trials_run)
    assert [trial.outcome.why for trial in results] == ["it diverged"] * 3
    assert not (folder / "best-recipe.json").exists()
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["best"] is None


def test_a_trial_is_pruned_when_most_were_better_at_the_same_mark(folder: Path) -> None:
    trials_run = FakeTrials(Clock(), losses=lambda _: 1.0 + 0.001 * len(trials_run.recipes))
    results, _ = searched(folder, 8, trials_run)
    assert [trial.outcome.kind for trial in results] == ["complete"] * 5 + ["pruned"] * 3
    assert results[-1].to_json()["given_up_at"] == MARKS[0]


# Limits.


@pytest.mark.parametrize(("seconds", "count"), [(120, 1), (239, 1), (257, 1), (259, 2), (619, 5)])
def test_a_trial_that_would_not_fit_is_not_started(folder: Path, seconds: float, count: int) -> None:
    trials_run = FakeTrials(Clock())
    with search_in(folder, lambda: START, PROTOCOL) as search:
        assert len(list(search.run(trials_run, Limits(seconds=seconds), clock=trials_run.clock))) == count
    assert trials_run.clock.now <= seconds


def test_the_longest_trial_so_far_decides_whether_another_fits(folder: Path) -> None:
    trials_run = FakeTrials(Clock())
    trials_run.then = lambda _: Outcome("complete", 1.0, seconds=200)
    with search_in(folder, lambda: START, PROTOCOL) as search:
        assert len(list(search.run(trials_run, Limits(seconds=300), clock=trials_run.clock))) == 1


def test_the_limits_include_earlier_sessions(folder: Path) -> None:
    trials_run = FakeTrials(Clock())
    for limits, count in ((Limits(trials=2), 2), (Limits(trials=3), 1), (Limits(trials=3), 0), (Limits(500), 1)):
        with search_in(folder, lambda: START, PROTOCOL) as search:
            assert len(list(search.run(trials_run, limits, clock=trials_run.clock))) == count
            assert search.spent_s == trials_run.clock.now


# Interruptions.


def test_a_stopped_search_continues_as_if_it_had_not_stopped(folder: Path, tmp_path: Path) -> None:
    whole, _ = searched(tmp_path / "whole", 13)
    trials_run = FakeTrials(Clock())
    trials_run.then = lambda number: Outcome("stopped") if number in (1, 7, 13) else None
    for _ in range(4):
        results, _ = searched(folder, 13, trials_run)
    assert [trial.recipe for trial in results] == [trial.recipe for trial in whole]
    assert [result.first for result in results] == [trial.first for trial in whole]


def test_a_search_stopped_before_its_first_trial_has_results_without_trials(folder: Path) -> None:
    with search_in(folder, lambda: START, PROTOCOL) as search:
        assert list(search.run(FakeTrials(Clock()), Limits(trials=1), should_stop=lambda: "SIGINT")) == []
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["trials"] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_trial_that_raised_is_repeated(folder: Path, error: type[BaseException]) -> None:
    trials_run = FakeTrials(Clock())

    def fail(number: int) -> None:
        if number == 2:
            raise error

    trials_run.then = fail
    with pytest.raises(error):
        searched(folder, 3, trials_run)
    results, _ = searched(folder, 3, trials_run)
    assert len(results) == 3
    assert trials_run.recipes[1] == trials_run.recipes[2] == results[1].recipe


def killed_in_a_trial(folder: Path) -> Recipe:
    """Start a trial and leave it unfinished, as a kill does; returns its recipe."""
    with search_in(folder, lambda: START, PROTOCOL) as search:
        search._recover()
        search.study.sampler = search._sampler()
        trial = search.study.ask(search_space(START))
        return START if "first" in trial.user_attrs else recipe_of_trial(START, trial.params)


def test_a_search_of_an_earlier_version_keeps_its_cells(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna refuses a study whose choices change."""

    def earlier(start: Recipe) -> dict[str, Any]:
        return search_space(start) | {"cell": CategoricalDistribution(["gru", "lstm"])}

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "search_space", earlier)
        searched(folder, 3, start=START.with_options({"cell": "gru"}))
    results, _ = searched(folder, 14)
    assert {result.recipe.model.cell for result in results} == {"gru", "lstm"}


def test_a_killed_trial_is_repeated_but_not_forever(folder: Path) -> None:
    searched(folder, 1)
    killed = [killed_in_a_trial(folder) for _ in range(4)]
    assert killed[0] == killed[1]
    assert killed[1] != killed[2]
    assert killed[2] == killed[3]
    results, _ = searched(folder, 3)
    assert [trial.outcome.kind for trial in results] == ["complete"] * 3
    assert results[1].recipe not in killed


def test_the_first_recipe_is_repeated_even_if_it_was_killed_often(folder: Path) -> None:
    assert [killed_in_a_trial(folder) for _ in range(3)] == [START] * 3
    results, _ = searched(folder, 1)
    assert results[0].first
    assert results[0].recipe == START


def test_a_truncated_line_of_the_journal_is_dropped(folder: Path) -> None:
    searched(folder, 2)
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    (folder / "journal.jsonl.lock").touch()
    assert len(searched(folder, 3)[0]) == 3
    assert len(searched(folder, 4)[0]) == 4


def test_the_first_recipe_stays_that_of_the_first_session(folder: Path) -> None:
    searched(folder, 1)
    results, _ = searched(folder, 2, start=START.with_options({"units": 64, "state_reset": 0.5}))
    assert results[0].recipe == START
    assert results[1].recipe.training.state_reset == START.training.state_reset


# Refusals.


def test_another_text_or_protocol_is_refused(folder: Path) -> None:
    searched(folder, 1)
    with pytest.raises(UsageError, match="is a search for another text"):
        searched(folder, 2, text="other")
    with pytest.raises(UsageError, match="with --minutes-per-trial 2, not 5"):
        searched(folder, 2, **{"--minutes-per-trial": 5.0})
    with pytest.raises(UsageError, match="with `threads` 1, not 2"):
        searched(folder, 2, **{"--threads": 2})


def test_a_folder_with_other_files_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    searched(folder, 1)  # An empty folder is free.
    (tmp_path / "novel.txt").touch()
    for place in (tmp_path, tmp_path / "novel.txt", tmp_path / "novel.txt" / "inside"):
        with pytest.raises(RunError):
            searched(place, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["novel.txt", "tune"]


@pytest.mark.parametrize("damage", [b"what?\n", b'{"op_code": 4}\n', b"[]\n"])
def test_a_damaged_journal_is_one_line(folder: Path, damage: bytes) -> None:
    searched(folder, 1)
    journal = folder / "journal.jsonl"
    journal.write_bytes(damage + journal.read_bytes())
    with pytest.raises(DamagedRunError, match=r"journal\.jsonl is damaged"):
        searched(folder, 2)


@pytest.mark.parametrize("change", [('"loss":', '"lost":'), ('"kind":"complete"', '"kind":3')])
def test_a_damaged_outcome_is_one_line(folder: Path, change: tuple[str, str]) -> None:
    searched(folder, 1)
    journal = folder / "journal.jsonl"
    text = journal.read_text(encoding="utf-8")
    assert change[0] in text
    journal.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(DamagedRunError, match="is damaged: the outcome of a trial has"):
        searched(folder, 2)


def test_a_journal_that_cannot_be_written_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a disk is full, also at the end of a trial."""
    searched(folder, 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"^cannot use .*journal\.jsonl: No space left on device$"):
        searched(folder, 2)


def test_two_searches_at_once_are_refused(folder: Path) -> None:
    with search_in(folder, lambda: START, PROTOCOL), pytest.raises(RunError, match="another process is searching"):
        searched(folder, 1)
    searched(folder, 1)


# A trial.


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread: None) -> None:
    """The models here are small."""


def task(minutes: float = 1.0, text: str = TEXT) -> Task:
    cut = len(text) * 4 // 5
    return Task(Vocabulary.from_text(text), text[:cut], text[cut:], minutes, Compute())


TINY = Recipe(
    model=ModelConfig(units=8, embedding_size=4),
    sequences=SequenceConfig(batch=2, seq_length=16),
    training=START.training,
)


def never(mark: int, loss: float) -> bool:
    return False


def test_a_trial_evaluates_the_weights_that_train_would_keep() -> None:
    seen: list[Event] = []
    marks: dict[int, float] = {}

    def note(mark: int, loss: float) -> bool:
        marks[mark] = loss
        return False

    outcome = run_trial(task(), TINY, note, on_event=seen.append, clock=Clock(0.05))
    assert outcome.kind == "complete"
    assert outcome.loss is not None
    # The validation text is shorter than a probe, so the best loss on the way is the result.
    losses = [event.validation_loss for event in seen if isinstance(event, Epoch | Validation)]
    assert outcome.loss == pytest.approx(min(loss for loss in losses if loss is not None))
    assert outcome.loss < math.log(len(task().vocabulary)) - 0.3
    assert list(marks) == [0, 1, 2]
    assert outcome.fraction > 0.9
    assert outcome.steps > 50
    assert outcome.parameters == sum(
        weight.numel() for weight in LanguageModel(TINY.model, len(task().vocabulary)).parameters()
    )


def test_a_trial_is_judged_by_its_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are chosen by a part of the validation text and evaluated on all of it."""
    evaluated: list[tuple[int, float]] = []

    def rising(reader: Any, vocabulary: Vocabulary, text: str, protocol: str = "carried") -> Any:
        evaluated.append((len(text), float(reader._model.arrays()["head.weight"].sum())))
        return dataclasses.replace(
            evaluate(reader._model, vocabulary, text), nats_per_char=3.0 + abs(len(evaluated) - 3), blocks=()
        )

    monkeypatch.setattr(trial_module, "evaluate_text", rising)
    long = task(text=TEXT * 50)
    assert run_trial(long, TINY, never, clock=Clock(0.05)).kind == "complete"
    (*seen, (length, weights)) = evaluated
    assert {length for length, _ in seen} == {PROBE_PIECES * PROBE_LENGTH + 1}
    assert length == len(long.validation_text)
    assert [weight == weights for _, weight in seen] == [False, False, True] + [False] * (len(seen) - 3)


def test_a_trial_is_pruned_at_its_mark() -> None:
    outcome = run_trial(task(), TINY, lambda mark, _: mark == 1, clock=Clock(0.05))
    assert outcome.kind == "pruned"
    assert MARKS[1] <= outcome.fraction < MARKS[2]
    assert outcome.loss is not None


def test_a_stopped_trial_is_marked_as_stopped() -> None:
    asked: Iterator[str | None] = iter([None] * 5 + ["SIGINT"] * 5)
    outcome = run_trial(task(), TINY, never, should_stop=lambda: next(asked), clock=Clock(0.05))
    assert (outcome.kind, outcome.steps) == ("stopped", 6)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (DivergedError("training diverges"), "it diverged"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you results to allocate 9 bytes"),
            "not enough memory",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
    ],
)
def test_a_trial_that_diverges_or_runs_out_of_memory_has_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    raising(monkeypatch, error)
    clock = Clock(0.5)
    outcome = run_trial(task(), TINY, never, clock=clock)
    assert (outcome.kind, outcome.why, outcome.loss) == ("failed", why, None)
    assert outcome.seconds > 0


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        run_trial(task(), TINY, never)


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the next training raise an error after its first event."""

    def broken(*arguments: Any, **options: Any) -> Iterator[Event]:
        yield next(fit(*arguments, **options))
        raise error

    monkeypatch.setattr(trial_module, "fit", broken)


def test_the_budget_of_the_recipe_is_ignored() -> None:
    short = TINY.with_options({"steps": 2, "target_loss": 100.0, "patience": 1})
    outcome = run_trial(task(), short, never, clock=Clock(0.05))
    assert outcome.kind == "complete"
    assert outcome.steps > 50


def test_losses_are_interpolated_at_the_marks() -> None:
    curve = LossCurve()
    assert curve.passed(0.1, 4.0) == []
    assert curve.passed(0.35, 3.0) == [(0, pytest.approx(3.2))]
    assert curve.passed(0.4, 2.9) == []
    assert curve.passed(0.9, 2.4) == [(1, pytest.approx(2.8)), (2, pytest.approx(2.6))]
    assert curve.passed(1.0, 2.0) == []


def test_marks_before_the_first_loss_are_skipped() -> None:
    curve = LossCurve()
    assert curve.passed(0.6, 3.0) == []
    assert curve.passed(0.8, 2.0) == [(2, pytest.approx(2.5))]
    assert LossCurve().passed(MARKS[0], 2.0) == [(0, 2.0)]


def test_a_probe_is_spread_evenly_over_the_text() -> None:
    text = "".join(chr(0x4E00 + i // 100) for i in range(500_000))
    sampled, protocol = probe(text)
    assert protocol == f"windows-{PROBE_LENGTH}"
    assert (len(sampled) - 1) // PROBE_LENGTH == PROBE_PIECES
    assert sampled[0] == text[0]
    assert sampled[-1] == text[-1]
    assert len(set(sampled)) >= 3 * PROBE_PIECES
    for short in ("short", text[: 2 * PROBE_LENGTH]):
        assert probe(short) == (short, "carried")
    assert probe(text[:5000]) == (text[:5000], protocol)


def test_a_task_with_too_little_text_is_refused() -> None:
    task().check()
    with pytest.raises(CorpusError, match="at least two"):
        dataclasses.replace(task(), training_text="a").check()
    with pytest.raises(UsageError, match="`val_fraction`"):
        dataclasses.replace(task(), validation_text="").check()
    with pytest.raises(CorpusError, match="fewer than two"):
        dataclasses.replace(task(), validation_text="a").check()


def test_a_real_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts together, in a space of tiny networks."""
    tiny = dict.fromkeys(("units", "embedding_size"), space_module._integers(8, 16, 8, 8))
    for module in (search_module, space_module):
        monkeypatch.setattr(module, "search_space", lambda start: search_space(start) | tiny)
    common, clock = task(0.2), Clock(0.05)
    with search_in(folder, lambda: TINY, PROTOCOL | {"--minutes-per-trial": 0.2}) as search:
        assert isinstance(search, Search)
        results = list(
            search.run(
                lambda recipe, should_prune: run_trial(common, recipe, should_prune, clock=clock),
                Limits(trials=4),
                clock=clock,
            )
        )
    assert len(results) == 4
    assert results[0].outcome.loss is not None
    assert {trial.outcome.kind for trial in results} <= {"complete", "pruned"}


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_journal_that_was_cut_is_refused(folder: Path, kept: float) -> None:
    searched(folder, 4)
    results = (folder / "results.json").read_bytes()
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: int(kept * len(lines))]))
    with pytest.raises(DamagedRunError, match="lost trials"):
        searched(folder, 5)
    assert (folder / "results.json").read_bytes() == results
