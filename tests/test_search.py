"""The search for options: what is proposed, what is compared, what survives a stop, and one real trial."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
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
from charwright.evaluate import evaluate
from charwright.training import search as search_module
from charwright.training import trial as trial_module
from charwright.training.events import Epoch, Event, Validation
from charwright.training.loop import fit
from charwright.training.recipe_file import read_recipe
from charwright.training.recipes import DEFAULT, Text, make_plan
from charwright.training.search import (
    Hopeless,
    Limits,
    Search,
    Tried,
    nearest,
    recipe_of_trial,
    search_in,
    space,
    starting_recipe,
)
from charwright.training.trial import MARKS, PROBE_LENGTH, PROBE_PIECES, Curve, Outcome, Task, probe, run_trial
from commands import TEXT

START = DEFAULT.with_options({"minutes": 2.0})
PROTOCOL = {"text": "abc", "--minutes-per-trial": 2.0, "--seed": 1, "--threads": 1}


class Clock:
    """Goes on by itself a little each time that it is asked, and by more when it is told so."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def loss_of(recipe: Recipe) -> float:
    """A made-up loss with its minimum far from the recipe that a search starts from."""
    model, training = recipe.model, recipe.training
    rate = math.log(training.learning_rate / 1.5e-2)
    return 1 + 0.2 * rate**2 + abs(model.units - 1024) / 1000 + model.dropout + (model.cell == "gru")


class Bench:
    """Measures recipes by `loss_of`, each in two minutes of a clock that nobody waits for."""

    def __init__(self, clock: Clock, losses: Callable[[Recipe], float] = loss_of) -> None:
        self.clock, self.losses = clock, losses
        self.recipes: list[Recipe] = []
        self.then: Callable[[int], Outcome | None] = lambda _: None

    def __call__(self, recipe: Recipe, hopeless: Hopeless) -> Outcome:
        self.recipes.append(recipe)
        self.clock.now += 120
        if (other := self.then(len(self.recipes))) is not None:
            return other
        loss = self.losses(recipe)
        for mark in range(len(MARKS)):
            if hopeless(mark, loss + 0.1 * (len(MARKS) - mark)):
                return Outcome("pruned", loss, MARKS[mark], seconds=120 * MARKS[mark])
        return Outcome("complete", loss, 1.0, steps=9, seconds=120, chars_per_s=5.0, parameters=3)


def searched(
    folder: Path, trials: int, bench: Bench | None = None, start: Recipe = START, **protocol: Any
) -> tuple[list[Tried], Bench]:
    """Search for as long as that takes."""
    bench = bench or Bench(Clock())
    with search_in(folder, lambda: start, PROTOCOL | protocol) as search:
        list(search.run(bench, Limits(trials=trials), clock=bench.clock))
        return search.tried(), bench


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tune" / "hamlet"


# What is searched.


def test_the_first_trial_is_the_recipe_that_train_would_take(folder: Path) -> None:
    odd = START.with_options({"units": 700, "weight_decay": 0.0, "zero_state": 0.07})
    tried, bench = searched(folder, 3, start=odd)
    assert bench.recipes[0] == tried[0].recipe == odd
    assert [trial.first for trial in tried] == [True, False, False]
    assert all(recipe.training.zero_state == 0.07 for recipe in bench.recipes)


def test_the_space_holds_whatever_it_starts_from() -> None:
    odd = Recipe(
        model=ModelConfig(cell="rnn", units=2050, layers=3, embedding=7, dropout=0.33),
        sequences=SequenceConfig(batch=5, seq_length=200),
        training=TrainingConfig(learning_rate=0.5, weight_decay=0.0),
    )
    for start in (START, odd, Recipe()):
        point = nearest(start)
        for name, distribution in space(start).items():
            assert distribution._contains(distribution.to_internal_repr(point[name])), name
    usual = recipe_of_trial(START, nearest(START))
    assert usual == START
    cells = space(odd)["cell"]
    assert isinstance(cells, CategoricalDistribution)
    assert cells.choices == ("gru", "lstm", "rnn")


def test_numbers_are_rounded_to_what_one_would_type() -> None:
    params = nearest(START) | {"learning_rate": 0.00123456}
    assert recipe_of_trial(START, params).training.learning_rate == 0.00123


def test_a_tied_embedding_stays_as_wide_as_the_units() -> None:
    tied = START.with_options({"tied": True, "embedding": 512})
    assert recipe_of_trial(tied, nearest(tied) | {"units": 256}).model.embedding == 256


def test_the_starting_recipe_is_planned_for_the_text_and_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {128: 90_000.0, 512: 20_000.0}
    monkeypatch.setattr(search_module, "plan_here", lambda text, options, **_: make_plan(text, options, speeds))
    recipe = starting_recipe(task(), {"min_count": 3, "seed": 7})
    text = Text.of(task().training_text, task().vocabulary)
    assert recipe == make_plan(text, {"minutes": task().minutes, "min_count": 3, "seed": 7}, speeds).recipe
    assert (recipe.training.minutes, recipe.vocabulary.min_count, recipe.training.seed) == (task().minutes, 3, 7)


# What is found.


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> list[Tried]:
    return searched(tmp_path_factory.mktemp("forty"), 40)[0]


def test_it_finds_better_than_it_began_with(forty: list[Tried]) -> None:
    best = min(trial.outcome.loss or 9 for trial in forty if trial.outcome.kind == "complete")
    assert best < loss_of(START) - 1
    assert {trial.outcome.kind for trial in forty} == {"complete", "pruned"}


def test_the_estimator_learns_from_the_trials(forty: list[Tried]) -> None:
    losses = [loss_of(trial.recipe) for trial in forty[1:]]
    assert sum(losses[-15:]) < sum(losses[:10]) * 15 / 10 * 0.8


def test_the_results_are_on_the_disk_after_each_trial(folder: Path) -> None:
    bench = Bench(Clock())
    bench.then = lambda number: Outcome("failed", why="it diverged") if number == 2 else None
    with search_in(folder, lambda: START, PROTOCOL) as search:
        for number, tried in enumerate(search.run(bench, Limits(trials=4), clock=bench.clock)):
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            assert results["trials"][-1] == tried.to_json()
            assert len(results["trials"]) == number + 1
            best = search.best()
            assert best is not None
            assert results["best"] == best.number
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


def test_what_failed_is_counted_and_never_the_best(folder: Path) -> None:
    bench = Bench(Clock())
    bench.then = lambda _: Outcome("failed", why="it diverged")
    tried, _ = searched(folder, 3, bench)
    assert [trial.outcome.why for trial in tried] == ["it diverged"] * 3
    assert not (folder / "best-recipe.json").exists()
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["best"] is None


def test_a_trial_is_given_up_when_most_were_better_at_the_same_mark(folder: Path) -> None:
    bench = Bench(Clock(), losses=lambda _: 1.0 + 0.001 * len(bench.recipes))
    tried, _ = searched(folder, 8, bench)
    assert [trial.outcome.kind for trial in tried] == ["complete"] * 5 + ["pruned"] * 3
    assert tried[-1].to_json()["given_up_at"] == MARKS[0]


# When it ends.


@pytest.mark.parametrize(("seconds", "made"), [(120, 1), (239, 1), (257, 1), (259, 2), (619, 5)])
def test_a_trial_that_would_not_fit_is_not_begun(folder: Path, seconds: float, made: int) -> None:
    bench = Bench(Clock())
    with search_in(folder, lambda: START, PROTOCOL) as search:
        assert len(list(search.run(bench, Limits(seconds=seconds), clock=bench.clock))) == made
    assert bench.clock.now <= seconds


def test_a_trial_that_took_long_is_a_warning(folder: Path) -> None:
    bench = Bench(Clock())
    bench.then = lambda _: Outcome("complete", 1.0, seconds=200)
    with search_in(folder, lambda: START, PROTOCOL) as search:
        assert len(list(search.run(bench, Limits(seconds=300), clock=bench.clock))) == 1


def test_the_limits_hold_for_all_sessions_together(folder: Path) -> None:
    bench = Bench(Clock())
    for limits, made in ((Limits(trials=2), 2), (Limits(trials=3), 1), (Limits(trials=3), 0), (Limits(500), 1)):
        with search_in(folder, lambda: START, PROTOCOL) as search:
            assert len(list(search.run(bench, limits, clock=bench.clock))) == made
            assert search.spent_s == bench.clock.now


# Stopped and gone on with.


def test_a_stopped_search_goes_on_as_if_it_never_was(folder: Path, tmp_path: Path) -> None:
    whole, _ = searched(tmp_path / "whole", 16)
    bench = Bench(Clock())
    bench.then = lambda number: Outcome("stopped") if number in (1, 7, 14) else None
    for _ in range(4):
        tried, _ = searched(folder, 16, bench)
    assert [trial.recipe for trial in tried] == [trial.recipe for trial in whole]
    assert [trial.first for trial in tried] == [trial.first for trial in whole]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_trial_that_was_torn_off_is_begun_again(folder: Path, error: type[BaseException]) -> None:
    bench = Bench(Clock())

    def tear(number: int) -> None:
        if number == 2:
            raise error

    bench.then = tear
    with pytest.raises(error):
        searched(folder, 3, bench)
    tried, _ = searched(folder, 3, bench)
    assert len(tried) == 3
    assert bench.recipes[1] == bench.recipes[2] == tried[1].recipe


def killed_in_a_trial(folder: Path) -> Recipe:
    """Begin a trial, of which nothing is heard any more; the recipe of it."""
    with search_in(folder, lambda: START, PROTOCOL) as search:
        search._clear_up()
        search.study.sampler = search._sampler()
        trial = search.study.ask(space(START))
        return START if "first" in trial.user_attrs else recipe_of_trial(START, trial.params)


def test_a_trial_that_a_kill_cut_off_is_begun_again_but_not_for_ever(folder: Path) -> None:
    searched(folder, 1)
    cut_off = [killed_in_a_trial(folder) for _ in range(4)]
    assert cut_off[0] == cut_off[1]
    assert cut_off[1] != cut_off[2]
    assert cut_off[2] == cut_off[3]
    tried, _ = searched(folder, 3)
    assert [trial.outcome.kind for trial in tried] == ["complete"] * 3
    assert tried[1].recipe not in cut_off


def test_the_first_recipe_is_tried_even_if_it_was_cut_off(folder: Path) -> None:
    assert [killed_in_a_trial(folder) for _ in range(3)] == [START] * 3
    tried, _ = searched(folder, 1)
    assert tried[0].first
    assert tried[0].recipe == START


def test_a_line_that_was_cut_off_costs_only_itself(folder: Path) -> None:
    searched(folder, 2)
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    (folder / "journal.jsonl.lock").touch()
    assert len(searched(folder, 3)[0]) == 3
    assert len(searched(folder, 4)[0]) == 4


def test_the_first_recipe_stays_that_of_the_first_session(folder: Path) -> None:
    searched(folder, 1)
    tried, _ = searched(folder, 2, start=START.with_options({"units": 64, "zero_state": 0.5}))
    assert tried[0].recipe == START
    assert tried[1].recipe.training.zero_state == START.training.zero_state


# What is refused.


def test_another_text_or_protocol_is_refused(folder: Path) -> None:
    searched(folder, 1)
    with pytest.raises(UsageError, match="is a search for another text"):
        searched(folder, 2, text="other")
    with pytest.raises(UsageError, match="with --minutes-per-trial 2, not 5"):
        searched(folder, 2, **{"--minutes-per-trial": 5.0})
    with pytest.raises(UsageError, match="with --threads 1, not 2"):
        searched(folder, 2, **{"--threads": 2})


def test_a_folder_that_is_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    searched(folder, 1)  # Empty is free.
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


def test_two_at_once_are_refused(folder: Path) -> None:
    with search_in(folder, lambda: START, PROTOCOL), pytest.raises(RunError, match="another process searches"):
        searched(folder, 1)
    searched(folder, 1)


# One trial.


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread: None) -> None:
    """All that is trained here is small."""


def task(minutes: float = 1.0, text: str = TEXT) -> Task:
    cut = len(text) * 4 // 5
    return Task(Vocabulary.from_text(text), text[:cut], text[cut:], minutes, torch.device("cpu"))


TINY = Recipe(
    model=ModelConfig(units=8, embedding=4), sequences=SequenceConfig(batch=2, seq_length=16), training=START.training
)


def never(mark: int, loss: float) -> bool:
    return False


def test_a_trial_measures_what_train_would_keep() -> None:
    heard: list[Event] = []
    marks: dict[int, float] = {}

    def note(mark: int, loss: float) -> bool:
        marks[mark] = loss
        return False

    outcome = run_trial(task(), TINY, note, listen=heard.append, clock=Clock(0.05))
    assert outcome.kind == "complete"
    assert outcome.loss is not None
    # The validation text is shorter than what is looked at on the way, so the best of those losses is the result.
    losses = [event.validation_loss for event in heard if isinstance(event, Epoch | Validation)]
    assert outcome.loss == pytest.approx(min(loss for loss in losses if loss is not None))
    assert outcome.loss < math.log(len(task().vocabulary)) - 0.3
    assert list(marks) == [0, 1, 2]
    assert outcome.fraction > 0.9
    assert outcome.steps > 50
    assert outcome.parameters == sum(weight.size for weight in tiny_model().arrays().values())


def tiny_model() -> Any:
    from charwright.model.language_model import LanguageModel

    return LanguageModel(TINY.model, len(task().vocabulary))


def test_a_trial_that_turns_is_judged_by_its_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are chosen by a part of the validation text and measured on the whole of it."""
    measured: list[tuple[int, float]] = []

    def turning(model: Any, vocabulary: Vocabulary, text: str, protocol: str = "carried") -> Any:
        measured.append((len(text), float(model.arrays()["head.weight"].sum())))
        return dataclasses.replace(
            evaluate(model, vocabulary, text), nats_per_char=3.0 + abs(len(measured) - 3), blocks=()
        )

    monkeypatch.setattr(trial_module, "evaluate", turning)
    long = task(text=TEXT * 50)
    assert run_trial(long, TINY, never, clock=Clock(0.05)).kind == "complete"
    (*seen, (length, weights)) = measured
    assert {length for length, _ in seen} == {PROBE_PIECES * PROBE_LENGTH + 1}
    assert length == len(long.validation_text)
    assert [weight == weights for _, weight in seen] == [False, False, True] + [False] * (len(seen) - 3)


def test_a_hopeless_trial_is_given_up_at_its_mark() -> None:
    outcome = run_trial(task(), TINY, lambda mark, _: mark == 1, clock=Clock(0.05))
    assert outcome.kind == "pruned"
    assert MARKS[1] <= outcome.fraction < MARKS[2]
    assert outcome.loss is not None


def test_a_stopped_trial_says_so() -> None:
    asked: Iterator[str | None] = iter([None] * 5 + ["SIGINT"] * 5)
    outcome = run_trial(task(), TINY, never, should_stop=lambda: next(asked), clock=Clock(0.05))
    assert (outcome.kind, outcome.steps) == ("stopped", 6)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (DivergedError("it diverges whatever the learning rate"), "it diverged"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
    ],
)
def test_a_trial_that_cannot_be_has_failed(monkeypatch: pytest.MonkeyPatch, error: Exception, why: str) -> None:
    raising(monkeypatch, error)
    clock = Clock(0.5)
    outcome = run_trial(task(), TINY, never, clock=clock)
    assert (outcome.kind, outcome.why, outcome.loss) == ("failed", why, None)
    assert outcome.seconds > 0


def test_a_mistake_in_the_program_is_no_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        run_trial(task(), TINY, never)


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the next training end with an error, after it has begun."""

    def broken(*arguments: Any, **options: Any) -> Iterator[Event]:
        yield next(fit(*arguments, **options))
        raise error

    monkeypatch.setattr(trial_module, "fit", broken)


def test_a_budget_of_the_recipe_does_not_count() -> None:
    short = TINY.with_options({"steps": 2, "target_loss": 100.0, "patience": 1})
    outcome = run_trial(task(), short, never, clock=Clock(0.05))
    assert outcome.kind == "complete"
    assert outcome.steps > 50


def test_losses_are_compared_at_the_marks() -> None:
    curve = Curve()
    assert curve.passed(0.1, 4.0) == []
    assert curve.passed(0.35, 3.0) == [(0, pytest.approx(3.2))]
    assert curve.passed(0.4, 2.9) == []
    assert curve.passed(0.9, 2.4) == [(1, pytest.approx(2.8)), (2, pytest.approx(2.6))]
    assert curve.passed(1.0, 2.0) == []


def test_nothing_is_known_of_marks_before_the_first_loss() -> None:
    curve = Curve()
    assert curve.passed(0.6, 3.0) == []
    assert curve.passed(0.8, 2.0) == [(2, pytest.approx(2.5))]
    assert Curve().passed(MARKS[0], 2.0) == [(0, 2.0)]


def test_a_probe_is_spread_over_the_text() -> None:
    text = "".join(chr(0x4E00 + i // 100) for i in range(500_000))
    seen, protocol = probe(text)
    assert protocol == f"windows-{PROBE_LENGTH}"
    assert (len(seen) - 1) // PROBE_LENGTH == PROBE_PIECES
    assert seen[0] == text[0]
    assert seen[-1] == text[-1]
    assert len(set(seen)) >= 3 * PROBE_PIECES
    for short in ("short", text[: 2 * PROBE_LENGTH]):
        assert probe(short) == (short, "carried")
    assert probe(text[:5000]) == (text[:5000], protocol)


def test_too_little_text_is_refused_before_anything() -> None:
    task().check()
    with pytest.raises(CorpusError, match="at least two"):
        dataclasses.replace(task(), training_text="a").check()
    with pytest.raises(UsageError, match="--val-fraction"):
        dataclasses.replace(task(), validation_text="").check()
    with pytest.raises(CorpusError, match="fewer than two"):
        dataclasses.replace(task(), validation_text="a").check()


def test_a_real_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything together, in a space of tiny networks."""
    tiny = dict.fromkeys(("units", "embedding"), search_module._whole(8, 16, 8, 8))
    monkeypatch.setattr(search_module, "space", lambda start: space(start) | tiny)
    common, clock = task(0.2), Clock(0.05)
    with search_in(folder, lambda: TINY, PROTOCOL | {"--minutes-per-trial": 0.2}) as search:
        assert isinstance(search, Search)
        tried = list(
            search.run(
                lambda recipe, hopeless: run_trial(common, recipe, hopeless, clock=clock),
                Limits(trials=4),
                clock=clock,
            )
        )
    assert len(tried) == 4
    assert tried[0].outcome.loss is not None
    assert {trial.outcome.kind for trial in tried} <= {"complete", "pruned"}
