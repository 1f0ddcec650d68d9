"""Training as one call: `train`, `resume`, `plan` and `load` equal the commands; errors leave nothing behind."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import charwright as cw
from charwright.errors import CharwrightError, ConfigError, CorpusError, RunExistsError, RunNotFoundError, UsageError
from charwright.model.compute import Compute
from charwright.run import Run
from charwright.training import events
from commands import SMALL, TEXT, Terminal

pytestmark = pytest.mark.usefixtures("one_thread")

PACKAGE = Path(cw.__file__).parent
OPTIONS: dict[str, Any] = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16, "ngram_bits": 0}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run(text: Path, tmp_path: Path) -> Run:
    return cw.train(text, out=tmp_path / "run", steps=40, **OPTIONS)


def weights(run: Run | Path) -> bytes:
    folder = run if isinstance(run, Path) else run.folder
    return (folder / "model.safetensors").read_bytes()


# Train.


def test_train_returns_the_run_and_prints_nothing(
    text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = cw.train(text, out=tmp_path / "run", steps=40, **OPTIONS)
    assert capfd.readouterr() == ("", "")
    assert isinstance(trained, Run)
    assert trained.folder == tmp_path / "run"
    assert trained.weights().keys() == trained.model.weight_shapes(len(trained.vocabulary)).keys()
    assert (trained.model.units, trained.config.recipe.training.steps) == (16, 40)


def test_train_equals_the_command(charwright: Terminal, text: Path, tmp_path: Path, run: Run) -> None:
    assert (
        charwright("train", text, "--out", tmp_path / "shell", "--steps", "40", "--ngram-bits", "0", *SMALL).code == 0
    )
    assert weights(run) == weights(tmp_path / "shell")
    assert (run.folder / "config.json").read_bytes() == (tmp_path / "shell" / "config.json").read_bytes()


def test_the_output_bias_begins_at_the_frequencies_of_the_training_text(text: Path, tmp_path: Path) -> None:
    still: dict[str, Any] = {"steps": 1, "learning_rate": 1e-30, "ema": 0.0, **OPTIONS}
    trained = cw.train(text, out=tmp_path / "run", **still)
    training, _ = cw.split_corpus(cw.read_corpus(text).text, trained.config.recipe.split)
    counts = np.bincount(trained.vocabulary.encode(training), minlength=len(trained.vocabulary)) + 1.0
    logits = trained.weights()["head.bias"].astype(np.float64)
    assert_allclose(np.exp(logits) / np.exp(logits).sum(), counts / counts.sum(), rtol=1e-5)
    zeros = cw.train(text, out=tmp_path / "zeros", output_bias="zeros", **still)
    assert np.abs(zeros.weights()["head.bias"]).max() < 1e-20


def test_the_default_folder_is_named_after_the_text(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [cw.train(text.name, steps=1, **OPTIONS).folder for _ in range(2)]
    assert folders == [Path("runs/hamlet"), Path("runs/hamlet-2")]


def test_events_are_those_of_the_log(text: Path, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    trained = cw.train([text], out=tmp_path / "run", epochs=2, on_event=seen.append, **OPTIONS)
    assert [event.to_json() for event in seen] == list(trained.log())
    assert isinstance(seen[0], events.Start)
    assert isinstance(seen[-1], events.End)
    assert [event.step for event in seen] == sorted(event.step for event in seen)


def test_notices(text: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    cw.train(text, out=tmp_path / "run", steps=1, notify=lines.append, **OPTIONS)
    assert [line.partition(":")[0] for line in lines[:2]] == ["plan", "plan"]
    assert all("\n" not in line for line in lines)


def test_a_stop_ends_training_after_a_checkpoint(text: Path, tmp_path: Path) -> None:
    asked = iter([None] * 9 + ["enough"])
    seen: list[events.Event] = []
    options = {**OPTIONS, "steps": 40, "on_event": seen.append}
    stopped = cw.train(text, out=tmp_path / "run", should_stop=lambda: next(asked), **options)
    end = seen[-1]
    assert isinstance(end, events.End)
    assert (end.step, end.reason) == (10, "enough")
    found = stopped.latest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 10


def test_a_separate_validation_text(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("not to suffer the mind, to be nobler\n" * 20, encoding="utf-8")
    trained = cw.train(text, out=tmp_path / "run", validation=other, steps=5, **OPTIONS)
    assert [source.location for source in trained.config.validation] == [str(other)]
    assert trained.config.recipe.split.val_fraction == 0
    [epoch] = trained.epochs()
    assert epoch["validation_loss"] > 0


def test_a_parent_and_force(charwright: Terminal, run: Run, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("Über allen Gipfeln ist Ruh\n" * 60, encoding="utf-8")
    child = cw.train(more, out=tmp_path / "child", parent=run.folder, steps=5)
    assert child.config.parent is not None
    assert (child.config.parent.folder, child.model.units) == (str(run.folder), 16)
    assert child.vocabulary.characters.startswith(run.vocabulary.characters)
    words = ["--out", tmp_path / "shell", "--from", run.folder, "--steps", "5"]
    assert charwright("train", more, *words).code == 0
    assert weights(child) == weights(tmp_path / "shell")
    again = cw.train(more, out=tmp_path / "child", parent=run.folder, steps=3, force=True)
    assert [event["step"] for event in again.epochs()] == [3]
    with pytest.raises(UsageError, match="`force=True` would remove"):
        cw.train(more, out=run.folder, parent=run.folder, steps=3, force=True)
    with pytest.raises(UsageError, match="change single options by name"):
        cw.train(more, out=tmp_path / "new", parent=run.folder, recipe="tutorial", steps=2)


def test_a_planned_parent_leaves_what_prevents_memorization_to_a_plan_for_the_new_text(
    charwright: Terminal, run: Run, tmp_path: Path
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("Über allen Gipfeln ist Ruh\n" * 60, encoding="utf-8")
    fresh = cw.plan(more, steps=400, **OPTIONS).recipe
    said: list[str] = []
    child = cw.train(more, out=tmp_path / "child", parent=run.folder, steps=400, notify=said.append)
    old, new = run.config.recipe, child.config.recipe
    assert new.model.dropout == fresh.model.dropout > old.model.dropout
    assert new.model.recurrent_dropout == fresh.model.recurrent_dropout > old.model.recurrent_dropout
    assert new.training.weight_decay == fresh.training.weight_decay > old.training.weight_decay
    assert new.training.learning_rate < fresh.training.learning_rate == old.training.learning_rate
    rest = {"learning_rate": 1.0, "dropout": 0.0, "recurrent_dropout": 0.0, "weight_decay": 0.0, "steps": 400}
    assert new.with_options(rest) == dataclasses.replace(old.with_options(rest), split=new.split)
    assert said[0].startswith("plan: 1 layer of 16 multiplicative input-reset GRU units")
    assert child.config.plan is not None
    reasons = child.config.plan["reasons"]
    assert reasons["units"] == reasons["schedule"] == "as in the run that it continues from"
    assert "keep what is known" in reasons["learning_rate"]
    assert "memorization" in reasons["dropout"]

    grandchild = cw.train(more, out=tmp_path / "grandchild", parent=child.folder, steps=2)
    assert grandchild.config.recipe.model.dropout < new.model.dropout
    assert grandchild.config.recipe.training.learning_rate == old.training.learning_rate
    shown = charwright("train", more, "--from", child.folder, "--steps", "400", "--explain-plan")
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "--units 16 as in the run that it continues from" in lines
    assert any(line.startswith(f"--dropout {new.model.dropout} the text is read") for line in lines)


def test_a_run_that_only_gets_worse_keeps_the_weights_that_it_began_with(
    charwright: Terminal, text: Path, tmp_path: Path
) -> None:
    run = cw.train(text, out=tmp_path / "run", steps=300, **OPTIONS)
    seen: list[events.Event] = []
    worse: dict[str, Any] = {"steps": 3, "learning_rate": 3.0, "warmup": 0}
    child = cw.train(text, out=tmp_path / "child", parent=run.folder, on_event=seen.append, **worse)
    first = next(event for event in seen if isinstance(event, events.Validation))
    assert (first.step, first.train_loss, first.best) == (0, None, True)
    assert isinstance(seen[-1], events.End)
    assert (seen[-1].best_step, seen[-1].best_loss) == (0, first.validation_loss)
    assert weights(child) == weights(run)
    assert child.history()[0]["step"] == child.weights_step() == 0
    assert "step         0" in charwright("info", child.folder).out
    again = [event for event in cw.resume(child, steps=4).log() if event["event"] == "validation"]
    assert [event["step"] for event in again].count(0) == 1


def test_what_was_given_by_hand_stays_in_a_run_that_continues(text: Path, tmp_path: Path) -> None:
    """By the parent, by its parent, or for the run itself."""
    first = cw.train(text, out=tmp_path / "first", steps=2, dropout=0.0, **OPTIONS)
    second = cw.train(text, out=tmp_path / "second", parent=first.folder, steps=400, weight_decay=0.3)
    third = cw.train(text, out=tmp_path / "third", parent=second.folder, steps=2)
    for later in (second, third):
        assert later.config.recipe.model.dropout == 0
        assert later.config.recipe.training.weight_decay == 0.3
        assert later.config.plan is not None
        assert later.config.plan["reasons"]["dropout"] == "given by hand"
    assert second.config.recipe.model.recurrent_dropout > third.config.recipe.model.recurrent_dropout > 0


def test_a_parent_without_a_plan_keeps_its_options(text: Path, tmp_path: Path) -> None:
    first = cw.train(text, out=tmp_path / "first", recipe="tutorial", steps=2, dropout=0.25, **OPTIONS)
    second = cw.train(text, out=tmp_path / "second", parent=first.folder, steps=3)
    assert second.config.recipe == first.config.recipe.with_options({"steps": 3})
    assert second.config.plan is None
    with pytest.raises(UsageError, match="has no plan"):
        cw.plan(text, parent=first.folder)


def test_a_run_stands_for_its_folder(text: Path, tmp_path: Path) -> None:
    first = cw.train(text, out=tmp_path / "first", steps=2, **OPTIONS)
    second = cw.train(text, out=tmp_path / "second", parent=first, steps=2)
    third = cw.train(text, out=tmp_path / "third", teachers=[first, second], steps=2, written=0, **OPTIONS)
    assert second.config.parent is not None
    assert second.config.parent.folder == str(first.folder)
    assert [teacher.folder for teacher in third.config.teachers] == [str(first.folder), str(second.folder)]
    assert cw.load(third).generate("a", length=5, seed=1) == cw.load(third.folder).generate("a", length=5, seed=1)
    assert any(str(first.folder) in row for row in cw.plot(first).table())
    with pytest.raises(UsageError, match=rf"^{re.escape(str(first.folder))} is named twice"):
        cw.train(text, teachers=[first, first], steps=2)


# Resume.


def test_resume_equals_never_stopping(text: Path, tmp_path: Path, run: Run) -> None:
    # Nothing that depends on the budget: neither the schedule nor what is planned from the number of passes.
    constant = {**OPTIONS, "schedule": "constant", "warmup": 0}
    constant |= {"dropout": 0.1, "recurrent_dropout": 0.1, "weight_decay": 0.1}
    whole = cw.train(text, out=tmp_path / "whole", steps=70, **constant)
    asked = iter([None] * 29 + ["enough"])
    half = cw.train(text, out=tmp_path / "half", steps=70, should_stop=lambda: next(asked), **constant)
    assert weights(half) != weights(whole)
    assert weights(cw.resume(half)) == weights(whole)
    short = cw.train(text, out=tmp_path / "short", steps=35, **constant)
    seen: list[events.Event] = []
    longer = cw.resume(str(short.folder), steps=70, on_event=seen.append)
    assert weights(longer) == weights(whole)
    assert isinstance(seen[0], events.Resume)
    assert longer.config.recipe.training.steps == 70


def test_a_resume_finds_a_text_that_has_moved(text: Path, run: Run, tmp_path: Path) -> None:
    moved = text.rename(tmp_path / "moved.txt")
    with pytest.raises(CorpusError, match=r"hamlet\.txt"):
        cw.resume(run, steps=50)
    assert cw.resume(run, corpus=[str(moved)], steps=50).config.recipe.training.steps == 50


def test_a_resume_changes_nothing_but_the_budget(run: Run) -> None:
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="there is no option `step`; did you mean `steps`"):
        cw.resume(run, step=3)
    with pytest.raises(UsageError, match="`units` belongs to the run"):
        cw.resume(run, units=24)
    assert (run.folder / "config.json").read_bytes() == before


# Load and plan.


def test_load_generates_what_the_command_does(charwright: Terminal, run: Run) -> None:
    result = charwright("generate", run.folder, "--prompt", "x", "--length", "20", "--seed", "7")
    assert result.code == 0, result.err
    [completion] = cw.load(run.folder).generate("x", length=20, seed=7)
    assert "x" + completion.continuation == result.out.removesuffix("\n")
    with pytest.raises(RunNotFoundError):
        cw.load(run.folder / "nothing")


def test_plan_gives_reasons_and_writes_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = cw.plan(text, epochs=3, units=24)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == [text.name]
    assert (plan.recipe.model.units, plan.recipe.training.epochs) == (24, 3)
    assert plan.reasons["units"] == "given by hand"
    assert {"dropout", "learning_rate", "weight_decay"} <= plan.reasons.keys()
    trained = cw.train(text, out=tmp_path / "run", steps=5, **OPTIONS)
    assert trained.config.recipe == cw.plan(text, steps=5, **OPTIONS).recipe


# Errors.


def test_errors_leave_nothing_behind(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    expected: list[tuple[type[CharwrightError], str, dict[str, Any]]] = [
        (CorpusError, "empty.txt", {}),
        (CorpusError, "missing.txt", {}),
        (RunExistsError, text.name, {"out": "taken"}),
        (RunExistsError, text.name, {"out": "taken", "force": True}),
        (ConfigError, text.name, {"units": 0}),
        (ConfigError, text.name, {"hidden_size": 3}),
        (UsageError, text.name, {"device": "tpu9"}),
        (UsageError, text.name, {"recipe": "tutoral"}),
        (UsageError, text.name, {"target_loss": 1.0, "val_fraction": 0.0}),
        (RunNotFoundError, text.name, {"parent": "nothing"}),
    ]
    for kind, corpus, options in expected:
        with pytest.raises(kind) as caught:
            cw.train(corpus, **{"steps": 1, **options})
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before, (corpus, options)
    with pytest.raises(UsageError, match="name a text"):
        cw.train((), steps=1)


def test_the_number_of_threads_is_set(text: Path, tmp_path: Path) -> None:
    import torch

    seen: list[events.Event] = []
    cw.train(text, out=tmp_path / "run", steps=1, threads=2, on_event=seen.append, **OPTIONS)
    assert isinstance(seen[0], events.Start)
    assert seen[0].threads == 2
    torch.set_num_threads(1)
    Compute.choose("cpu").start()
    assert torch.get_num_threads() == 1


# The source.


def test_only_the_command_line_prints_and_exits() -> None:
    """Library code raises; it neither prints to stdout nor ends the process, and does not know click."""
    child = "interop/keras_files.py"  # Its second half is a child process, whose stdout its parent reads.
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE)
        if where.parts[0] in {"cli", "__main__.py"} or where.as_posix() == child:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if _prints_or_exits(node) or _imports_click(node):
                found.append(f"{where}:{node.lineno}")  # type: ignore[attr-defined]
    assert found == []


def _prints_or_exits(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if ast.unparse(node.func) == "print":
        return not any(keyword.arg == "file" for keyword in node.keywords)
    return ast.unparse(node.func) in {"sys.exit", "os._exit", "exit", "quit"}


def _imports_click(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "click" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "click"


def test_the_training_loop_is_one_loop() -> None:
    tree = ast.parse((PACKAGE / "training" / "loop.py").read_text(encoding="utf-8"))
    [fit] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "fit"]
    loops = [node for node in ast.walk(fit) if isinstance(node, ast.While | ast.For | ast.AsyncFor)]
    assert [type(node) for node in loops] == [ast.While]


@pytest.mark.parametrize("ending", ["py", "c", "h", "js"])
def test_no_module_has_more_than_400_lines(ending: str) -> None:
    lengths = {path: len(path.read_bytes().splitlines()) for path in PACKAGE.rglob(f"*.{ending}")}
    assert lengths
    assert {str(path): lines for path, lines in lengths.items() if lines > 400} == {}


def test_the_log_is_plain_json(run: Run) -> None:
    lines = (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.dumps(json.loads(line), allow_nan=False) for line in lines)


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_training_is_saved(text: Path, tmp_path: Path, run: Run, again: bool) -> None:
    """Ctrl-C in a Python program ends the step, saves, and is raised; the second one is raised at once."""

    def interrupt(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 10:
            for _ in range(1 + again):
                signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cw.train(text, out=tmp_path / "stopped", on_event=interrupt, log_every=1, **{**OPTIONS, "steps": 40})
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = Run.open(tmp_path / "stopped")
    found = stopped.latest_checkpoint()
    if again:
        assert found is None
        return
    assert found is not None
    assert found[1]["step"] in {10, 11}
    ended = cw.resume(stopped.folder)
    assert_allclose(ended.weights()["head.bias"], run.weights()["head.bias"])
