"""A search by several workers: in one process with clocks of their own, and in processes that are killed."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import optuna
from optuna.trial import TrialState

from charwright.errors import MissingExtraError, RunError, UsageError
from charwright.storage import read_json
from charwright.tuning.search import Limits, search_in
from charwright.tuning.shared import Patience, SharedSearch, shared_search
from charwright.tuning.storages import open_storage, shown
from charwright.tuning.study import quiet
from charwright.tuning.trial import Outcome, ShouldPrune
from commands import Terminal
from search_worker import PROTOCOL, START, loss_of

WORKER = Path(__file__).parent / "search_worker.py"
STILL = Patience(beat_s=1e6, dead_s=60.0, poll_s=0.0)
"""Nothing happens by itself: the clock decides who is dead."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., SharedSearch]]:
    """Opens workers of one study in a journal file."""
    with ExitStack() as opened:

        def open_worker(name: str = "a", study: str = "novel", **protocol: object) -> SharedSearch:
            spec = str(tmp_path / "journal.log")
            search = shared_search(tmp_path / name, spec, study, lambda: START, PROTOCOL | protocol, patience=STILL)
            return opened.enter_context(search)

        yield open_worker


def run_trial(recipe: object, _: ShouldPrune) -> Outcome:
    return Outcome("complete", loss_of(recipe), 1.0, seconds=120)  # type: ignore[arg-type]


def die(*_: object) -> Outcome:
    raise SystemError("the worker is gone")


def abandon(search: SharedSearch) -> int:
    """Claim a trial and do nothing more about it, as a worker that is killed."""
    search.recover(0.0)
    trial = search._claimed(Limits())
    assert trial is not None
    return trial.number


def test_workers_share_the_trials(worker: Callable[..., SharedSearch], tmp_path: Path) -> None:
    one, two = worker("a"), worker("b")
    first = one.run(run_trial, Limits(trials=5), clock=Clock())
    second = two.run(run_trial, Limits(trials=5), clock=Clock())
    numbers = [next(first).number, next(second).number, next(first).number, next(second).number, next(first).number]
    assert numbers == [0, 1, 2, 3, 4]
    assert [*first, *second] == []
    assert one.results() == two.results()
    assert [result.first for result in one.results()] == [True, False, False, False, False]
    assert one.results()[0].recipe == START
    assert len({result.recipe for result in one.results()}) == 5
    for name in "ab":
        assert [row["trial"] for row in read_json(tmp_path / name / "results.json")["trials"]] == numbers
        assert read_json(tmp_path / name / "study.json")["study"] == "novel"
    assert one.spent_s == two.spent_s > 0


def test_a_worker_that_comes_later_goes_on(worker: Callable[..., SharedSearch]) -> None:
    assert len(list(worker("a").run(run_trial, Limits(trials=2)))) == 2
    assert [result.number for result in worker("b").run(run_trial, Limits(trials=4))] == [2, 3]


def test_the_trial_of_a_dead_worker_is_repeated_once(worker: Callable[..., SharedSearch]) -> None:
    one, two = worker("a"), worker("b")
    list(one.run(run_trial, Limits(trials=1)))
    lost = abandon(one)
    clock = Clock()
    results = two.run(run_trial, Limits(trials=4), clock=clock)
    assert [next(results).number, next(results).number] == [2, 3]
    clock.now += STILL.dead_s
    assert next(results).number == 4
    assert list(results) == []
    trials = two.study.get_trials()
    assert trials[lost].state == TrialState.FAIL
    assert trials[4].params == trials[lost].params
    assert [result.number for result in one.results()] == [0, 2, 3, 4]


def test_a_worker_waits_for_the_last_trial_of_another(worker: Callable[..., SharedSearch]) -> None:
    one, two = worker("a"), worker("b")
    abandon(one)
    clock = Clock()
    assert [result.first for result in two.run(run_trial, Limits(trials=1), clock=clock)] == [True]
    assert clock.now > STILL.dead_s


def test_a_beating_worker_is_alive(worker: Callable[..., SharedSearch]) -> None:
    one, two = worker("a"), worker("b")
    number = abandon(one)
    for beat in range(9):
        one.study._storage.set_trial_user_attr(one.study.get_trials()[number]._trial_id, "beat", str(beat))
        two.recover(beat * STILL.dead_s * 0.9)
    assert two.study.get_trials()[number].state == TrialState.RUNNING


def test_what_a_worker_tells_that_was_given_up_is_discarded(worker: Callable[..., SharedSearch]) -> None:
    one, two = worker("a"), worker("b")

    def slow(recipe: object, should_prune: ShouldPrune) -> Outcome:
        two.recover(0.0)
        two.recover(STILL.dead_s)
        return run_trial(recipe, should_prune)

    running = one.run(slow, Limits(trials=1))
    assert list(two.run(run_trial, Limits(trials=0))) == []
    assert next(running).number == 1, "it repeats what it lost itself"
    assert [result.number for result in two.results()] == [1]


def test_a_trial_that_ended_before_its_worker_died_counts(worker: Callable[..., SharedSearch]) -> None:
    one, two = worker("a"), worker("b")
    trial = one.study.get_trials()[abandon(one)]
    outcome = vars(Outcome("complete", 1.5, 1.0, seconds=9))
    one.study._storage.set_trial_user_attr(trial._trial_id, "outcome", outcome)
    two.recover(0.0)
    two.recover(STILL.dead_s)
    assert [(result.number, result.loss) for result in two.results()] == [(0, 1.5)]
    assert two.study.get_trials()[0].state == TrialState.COMPLETE
    assert len(two.study.get_trials()) == 1


def test_a_trial_that_kills_every_worker_fails(worker: Callable[..., SharedSearch]) -> None:
    one = worker("a")
    for number in range(2):
        assert abandon(one) == number
        one.recover(0.0)
        one.recover(STILL.dead_s)
    assert [(result.number, result.outcome.kind) for result in one.results()] == [(1, "failed")]
    assert "died 2 times" in one.results()[0].outcome.why


def test_a_stopped_trial_is_repeated_by_another(worker: Callable[..., SharedSearch]) -> None:
    one, two = worker("a"), worker("b")
    assert list(one.run(lambda *_: Outcome("stopped"), Limits(trials=1))) == []
    with pytest.raises(SystemError):
        list(one.run(die, Limits(trials=1)))
    assert [(result.number, result.first) for result in two.run(run_trial, Limits(trials=1))] == [(2, True)]


def test_two_repetitions_of_one_trial_are_one(worker: Callable[..., SharedSearch]) -> None:
    one = worker("a")
    one.study.enqueue_trial({}, user_attrs={"first": True, "of": "first", "settings": {"start": {}}})
    list(one.run(run_trial, Limits(trials=3)))
    assert [result.first for result in one.results()] == [True, False, False]
    assert [result.number for result in one.results()] == [0, 2, 3]


def test_the_settings_of_the_first_are_those_of_all(worker: Callable[..., SharedSearch], tmp_path: Path) -> None:
    spec = str(tmp_path / "journal.log")
    other = START.with_options({"units": 64})
    with ExitStack() as opened:

        def begins_meanwhile() -> object:
            opened.enter_context(shared_search(tmp_path / "b", spec, "novel", lambda: other, PROTOCOL, patience=STILL))
            return START

        search = shared_search(tmp_path / "a", spec, "novel", begins_meanwhile, PROTOCOL, patience=STILL)  # type: ignore[arg-type]
        assert opened.enter_context(search).start == other
    assert worker("c").start == other


def test_refusals(worker: Callable[..., SharedSearch], tmp_path: Path) -> None:
    worker("a")
    with pytest.raises(UsageError, match=r"study 'novel' in .*journal.log is a search for another text; .* --study"):
        worker("b", text="other")
    assert worker("c", study="other", text="other").results() == []
    with pytest.raises(RunError, match="another process is searching"):
        worker("a")
    with pytest.raises(RunError, match="has its study in a --storage"), search_in(tmp_path / "a", lambda: START, {}):
        pass
    with search_in(tmp_path / "alone", lambda: START, PROTOCOL):
        pass
    with pytest.raises(RunError, match="leave --storage out"):
        worker("alone")


def test_a_search_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    spec = str(tmp_path / "none" / "journal.log")
    with pytest.raises(RunError), shared_search(tmp_path / "new", spec, "novel", lambda: START, {}):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            "cannot use the database postgresql+?.*://me:\\*\\*\\*@127.0.0.1:1/x: ",
        ),
        ("nonsense://x", "cannot use the database nonsense://x: "),
        ("/nowhere/journal", "cannot use /nowhere/journal: No such file or directory"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line(spec: str, message: str) -> None:
    if spec.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(RunError, match=message) as refused, quiet(), open_storage(spec):
        pass
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_not_a_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("once\nupon\n", encoding="utf-8")
    with pytest.raises(RunError, match="is not a journal"), open_storage(str(tmp_path / "novel.txt")):
        pass
    assert (tmp_path / "novel.txt").read_text(encoding="utf-8") == "once\nupon\n"


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"charwright\[postgres\]"), open_storage("postgresql://127.0.0.1/x"):
        pass
    assert shown("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"


def test_a_study_needs_a_storage(charwright: Terminal, tmp_path: Path) -> None:
    assert "--storage" in charwright("tune", "x.txt", "--trials", "1", "--study", "x").line


def test_a_line_that_a_kill_cut_off_is_dropped(worker: Callable[..., SharedSearch], tmp_path: Path) -> None:
    one, two = worker("a"), worker("b")
    list(one.run(run_trial, Limits(trials=1)))
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    list(two.run(run_trial, Limits(trials=2)))
    assert len(one.results()) == len(two.results()) == 2
    for line in (tmp_path / "journal.log").read_bytes().splitlines():
        json.loads(line)


# Processes.


def start(folder: Path, spec: str, trials: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(folder), spec, str(trials), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder.parent)


def search_with_a_kill(folder: Path, spec: str, trials: int = 6) -> None:
    """Two workers, one of which is killed within a trial: no trial is lost, and none is done twice."""
    one, two = (start(folder / name, spec, trials, 0.4) for name in "ab")
    with one, two:
        assert one.stdout is not None
        while "done" not in (line := one.stdout.readline()):
            assert line, "the worker has ended"
        assert "trial" in one.stdout.readline()
        one.send_signal(signal.SIGKILL)
        out, _ = two.communicate(timeout=60)
        assert two.returncode == 0
    rows = read_json(folder / "b" / "results.json")["trials"]
    assert len(rows) == trials
    assert {row["state"] for row in rows} == {"complete"}
    assert len({row["trial"] for row in rows}) == trials
    assert sum(row["first"] for row in rows) == 1
    assert out.count("done") < trials, "the other one did some before it was killed"
    with quiet(), open_storage(spec) as storage:
        [lost] = [t for t in optuna.load_study(study_name="novel", storage=storage).trials if _is_lost(t)]
    assert lost.user_attrs["kills"] == 1


def _is_lost(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "dropped" not in trial.user_attrs


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_two_workers_with_a_journal_file_one_of_them_killed(tmp_path: Path) -> None:
    search_with_a_kill(tmp_path, str(tmp_path / "journal.log"))


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server of Debian's package in a folder of its own; the address of its database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    programs = found[-1].parent
    # The server refuses to run as root, and its socket needs a short name.
    place = Path(subprocess.check_output(["mktemp", "--directory", "/tmp/pg.XXXXXX"], text=True).strip())
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    options: dict[str, object] = {"capture_output": True, "cwd": place}
    if os.geteuid() == 0:
        shutil.chown(place, user)
        options |= {"user": user}
    data, listen = place / "data", f"-k {place} -c listen_addresses= -c fsync=off"
    try:
        subprocess.run([programs / "initdb", "-D", data, "-U", "me", "-A", "trust"], check=True, **options)  # type: ignore[call-overload]
        control = [programs / "pg_ctl", "-D", data, "-w", "-l", place / "log"]
        subprocess.run([*control, "-o", listen, "start"], check=True, **options)  # type: ignore[call-overload]
        try:
            yield f"postgresql://me@/postgres?host={place}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, **options)  # type: ignore[call-overload]
    finally:
        shutil.rmtree(place)


@pytest.mark.slow
def test_two_workers_with_postgresql_one_of_them_killed(postgresql: str, tmp_path: Path) -> None:
    """Both begin with an empty database at the same moment."""
    search_with_a_kill(tmp_path, postgresql)
