"""`charwright tune`: a search from the command line, its folder, stops and refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

from charwright.cli.tune import _reading_words
from charwright.config import CorpusConfig, Recipe
from charwright.model.compute import Wanted
from charwright.planning.choice import Choice
from charwright.planning.recipe_file import read_recipe
from charwright.planning.recipes import DEFAULT
from charwright.run import Run
from charwright.tuning import start as start_module
from charwright.tuning import trial as trial_module
from charwright.tuning.trial import Outcome
from commands import TEXT, Terminal, process


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a text."""
    (tmp_path / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Trials that take no time: each has the next of these outcomes, later ones a loss of 2 nats."""
    outcomes: list[Outcome] = []

    def run_trial(*_: Any, **__: Any) -> Outcome:
        return outcomes.pop(0) if outcomes else Outcome("complete", 2.0, 1.0, seconds=1.0)

    monkeypatch.setattr(trial_module, "run_trial", run_trial)
    plan_as(DEFAULT, monkeypatch)
    return outcomes


def plan_as(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each search from a recipe, without measuring the machine."""

    def plan_here(_: object, options: dict[str, Any], wanted: Wanted) -> tuple[SimpleNamespace, Choice]:
        return SimpleNamespace(recipe=recipe.with_options(options)), Choice(wanted.by_rule())

    monkeypatch.setattr(start_module, "plan_here", plan_here)


def test_a_search_from_the_text_to_a_trained_run(
    charwright: Terminal, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = DEFAULT.with_options({"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16, "minutes": 0.01})
    plan_as(small, monkeypatch)
    result = charwright(
        "tune", "hamlet.txt", "--trials", "1", "--minutes-per-trial", "0.01", "--min-count", "2", "--threads", "1"
    )
    assert result.code == 0, result.err
    head, row = result.out.splitlines()
    assert head.split()[:4] == ["trial", "nats/char", "cell", "units"]
    assert row.split()[0] == "0"
    assert re.search(r"^trial 0  \d\.\d{4} nats/char  best so far  igru 16 x 1, ", result.err, re.MULTILINE)
    best = read_recipe(here / "tune" / "hamlet" / "best-recipe.json")
    assert best == small.with_options({"min_count": 2})

    [line] = [line for line in result.err.splitlines() if line.startswith("train with: ")]
    words = shlex.split(line.removeprefix("train with: "))
    assert words[:3] == ["charwright", "train", "hamlet.txt"]
    assert charwright(*words[1:], "--steps", "2").code == 2  # There can be only one budget.
    del words[words.index("--minutes") :]
    assert charwright(*words[1:], "--steps", "2").code == 0
    config = Run.open(here / "runs" / "hamlet").config
    assert config.recipe == best.with_options({"steps": 2})
    assert config.recipe_name == str(Path("tune", "hamlet", "best-recipe.json"))

    again = charwright("train", "hamlet.txt", "--recipe", "runs/hamlet/config.json", "--units", "24")
    assert again.code == 0
    assert Run.open(here / "runs" / "hamlet-2").config.recipe == config.recipe.with_options({"units": 24})


def test_the_table_has_the_best_ten(charwright: Terminal, here: Path, quick: list[Outcome]) -> None:
    quick += [Outcome("complete", 3 - 0.1 * number, 1.0) for number in range(12)]
    quick[4] = Outcome("pruned", 2.5, 0.5)
    quick[5] = Outcome("failed", why="it diverged")
    result = charwright("tune", "hamlet.txt", "--trials", "14", "--out", "found")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines()[1:]]
    assert len(rows) == 10
    assert rows[0][:2] == ["11", "1.9000"]
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert "pruned at 50%: others were better there" in result.err
    assert "failed: it diverged" in result.err
    assert "the best of 14 trials: 1.9000 nats/char; the planned recipe (trial 0): 3.0000" in result.err


def test_the_same_command_continues(charwright: Terminal, here: Path, quick: list[Outcome]) -> None:
    words = ["tune", "hamlet.txt", "--trials"]
    assert charwright(*words, "2").code == 0
    more = charwright(*words, "3")
    assert "2 already run" in more.err
    assert more.err.count("\ntrial ") == 1
    spent = charwright(*words, "3")
    assert spent.code == 0
    assert "raise --hours or --trials" in spent.err
    assert len(spent.out.splitlines()) == 4


def test_the_last_line_has_the_options_that_no_recipe_has(
    charwright: Terminal, here: Path, quick: list[Outcome]
) -> None:
    (here / "a text.txt").write_text(TEXT, encoding="utf-16")
    result = charwright(
        *("tune", "a text.txt", "--validation", "a text.txt", "--encoding", "utf-16"),
        *("--trials", "1", "--minutes-per-trial", "3"),
    )
    assert result.err.endswith(
        "train with: charwright train 'a text.txt' --recipe 'tune/a text/best-recipe.json' --minutes 30"
        " --validation 'a text.txt' --encoding utf-16\n"
    )


def test_hours_are_a_limit(charwright: Terminal, here: Path, quick: list[Outcome]) -> None:
    result = charwright("tune", "hamlet.txt", "--hours", "0.001", "--minutes-per-trial", "0.05", "--trials", "3")
    assert result.code == 0
    assert "trials of 0.05 minutes" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "1"], "name a text"),
        (["hamlet.txt"], "--hours or --trials"),
        (["hamlet.txt", "--hours", "0"], "--hours must be a number above 0"),
        (["hamlet.txt", "--hours", "-1"], "--hours must be a number above 0"),
        (["hamlet.txt", "--hours", "nan"], "--hours must be a number above 0"),
        (["hamlet.txt", "--hours", "inf"], "--hours must be a number above 0"),
        (["hamlet.txt", "--hours", "1", "--minutes-per-trial", "0"], "--minutes-per-trial must be a number above 0"),
        (["hamlet.txt", "--trials", "1", "--minutes-per-trial", "1e9"], "--minutes-per-trial must be at most"),
        (["hamlet.txt", "--hours", "0.01"], "is too short for a trial of 2 minutes"),
        (["hamlet.txt", "--trials", "0"], "--trials"),
        (["hamlet.txt", "--trials", "1", "--val-fraction", "0"], "a search needs validation text"),
        (["hamlet.txt", "--trials", "1", "--val-fraction", "2"], "--val-fraction must be at most 0.5"),
        (["hamlet.txt", "--trials", "1", "--device", "tpu9"], "--device"),
        (["hamlet.txt", "--trials", "1", "--core", "fast"], "core"),
        (["none.txt", "--trials", "1"], "none.txt"),
        (["short.txt", "--trials", "1"], "a search needs validation text"),
        (["empty.txt", "--trials", "1"], "empty"),
        (["hamlet.txt", "--trials", "1", "--out", "."], "is not a search"),
        (["hamlet.txt", "--trials", "1", "--out", "hamlet.txt"], "is not a search"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    charwright: Terminal, here: Path, words: list[str], message: str
) -> None:
    (here / "short.txt").write_text("abc", encoding="utf-8")
    (here / "empty.txt").touch()
    result = charwright("tune", *words)
    assert result.code in (1, 2)
    assert message in result.line
    assert sorted(path.name for path in here.iterdir()) == ["empty.txt", "hamlet.txt", "short.txt"]


def test_another_text_or_protocol_in_the_same_folder(charwright: Terminal, here: Path, quick: list[Outcome]) -> None:
    assert charwright("tune", "hamlet.txt", "--trials", "1").code == 0
    before = (here / "tune" / "hamlet" / "results.json").read_bytes()
    refused = charwright("tune", "hamlet.txt", "--trials", "2", "--val-split", "tail")
    assert (refused.code, "with --val-split lines, not tail" in refused.line) == (2, True)
    (here / "hamlet.txt").write_text(TEXT + "!", encoding="utf-8")
    refused = charwright("tune", "hamlet.txt", "--trials", "2")
    assert (refused.code, "another text" in refused.line) == (2, True)
    assert (here / "tune" / "hamlet" / "results.json").read_bytes() == before
    (here / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    assert "1 already run" in charwright("tune", "hamlet.txt", "--trials", "2").err


def test_a_journal_of_an_earlier_version_continues(charwright: Terminal, here: Path, quick: list[Outcome]) -> None:
    """It has the core that `auto` selected instead of `auto`, and no record of the choice."""
    words = ["tune", "hamlet.txt", "--device", "cpu", "--trials"]
    assert charwright(*words, "1").code == 0
    journal = here / "tune" / "hamlet" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    old = [line for line in lines if "compute" not in line.get("user_attr", {})]
    assert len(old) == len(lines) - 1
    [protocol] = [line["user_attr"]["protocol"] for line in old if "protocol" in line.get("user_attr", {})]
    assert protocol["--core"] == "auto"
    protocol["--core"] = "fused"
    journal.write_text("".join(json.dumps(line) + "\n" for line in old), encoding="utf-8")
    more = charwright(*words, "2")
    assert (more.code, "1 already run" in more.err) == (0, True), more.err
    kept = [json.loads(line).get("user_attr", {}).get("compute") for line in journal.read_text().splitlines()]
    assert [record["core"] for record in kept if record] == ["fused"]
    assert charwright(*words, "2", "--core", "fused").code == 0
    refused = charwright(*words, "2", "--core", "torch")
    assert (refused.code, "with --core fused, not torch" in refused.line) == (2, True)


def test_a_search_in_which_every_trial_fails(charwright: Terminal, here: Path, quick: list[Outcome]) -> None:
    quick += [Outcome("failed", why="it diverged")] * 2
    result = charwright("tune", "hamlet.txt", "--trials", "2")
    assert result.code == 1
    assert result.out == ""
    assert "none of 2 trials completed; the last one failed: it diverged" in result.err


def test_without_optuna(here: Path) -> None:
    result = process("tune", "hamlet.txt", "--trials", "1", prelude="sys.modules['optuna'] = None")
    assert result.code == 1
    assert "pip install 'charwright[tune]'" in result.line
    assert not (here / "tune").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_stops_a_search_and_the_same_command_continues(
    charwright: Terminal, here: Path, quick: list[Outcome]
) -> None:
    words = ["tune", "hamlet.txt", "--threads", "1", "--trials", "2", "--minutes-per-trial", "5"]
    command = [sys.executable, "-m", "charwright", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as tuning:
        assert tuning.stderr is not None
        assert b"searching in" in tuning.stderr.readline()
        second = charwright(*words)
        assert (second.code, "another process is searching" in second.line) == (1, True)
        tuning.send_signal(signal.SIGINT)
        out, err = tuning.communicate(timeout=60)
    assert tuning.returncode == 130, err.decode()
    assert out == b""
    assert b"run the same command to continue" in err.splitlines()[-1]
    assert json.loads((here / "tune" / "hamlet" / "results.json").read_text(encoding="utf-8"))["trials"] == []
    assert charwright(*words).code == 0
    trials = json.loads((here / "tune" / "hamlet" / "results.json").read_text(encoding="utf-8"))["trials"]
    assert [trial["first"] for trial in trials] == [True, False]


@pytest.mark.parametrize("field", dataclasses.fields(CorpusConfig), ids=lambda field: field.name)
def test_the_command_that_trains_reads_the_text_in_the_same_way(field: dataclasses.Field[str]) -> None:
    other = (*(choice for choice in field.metadata["choices"] or () if choice != field.default), "latin-1")[0]
    assert _reading_words(CorpusConfig(**{field.name: other})) == [f"--{field.name}", other]
    assert _reading_words(CorpusConfig()) == []
