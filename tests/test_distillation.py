"""Distillation: what teachers predict, what a model learns from it, and runs that have teachers."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import charwright as cw
from charwright.config import ModelConfig, SequenceConfig, TrainingConfig
from charwright.errors import ConfigError, DamagedRunError, RunError, StoppedError, UsageError
from charwright.model.compute import Compute
from charwright.planning.plan import make_plan
from charwright.planning.profile import TextProfile
from charwright.run import Run
from charwright.run_config import RunConfig, Teacher
from charwright.training.batch import Batch
from charwright.training.distillation import HARD, STEPS, STREAMS, Lessons, mean_predictions
from charwright.training.ranks import Ranks
from charwright.workflow import distillation
from charwright.workflow.distillation import Teachers, written_tokens
from charwright.workflow.ensemble import planned_teachers
from commands import SMALL, TEXT, Terminal

pytestmark = pytest.mark.usefixtures("one_thread")

V = 9
OPTIONS: dict[str, Any] = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16}
STUDENT: dict[str, Any] = {**OPTIONS, "written": 4_000, "steps": 30}


def model(seed: int, **options: Any) -> cw.LanguageModel:
    config = ModelConfig(units=16, embedding_size=8, **options)
    return cw.LanguageModel(config, V, seed=seed, compute=Compute.choose("cpu", precision="f32")).eval()


def some_ids(count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=3)).integers(0, V, count).astype(np.int32)


# Predictions.


@pytest.mark.parametrize("options", [{}, {"cell": "lstm", "layers": 2}, {"ngram_bits": 6, "ngram_order": 3}])
@pytest.mark.parametrize("count", [5, STREAMS * STEPS + 1, 3 * STREAMS * STEPS - 7])
def test_the_mean_of_what_the_teachers_predict_along_the_text(options: dict[str, Any], count: int) -> None:
    teachers, ids = [model(1, **options), model(2, **options)], some_ids(count)
    found = mean_predictions(teachers, ids)
    assert (found.shape, found.dtype) == ((count, V), torch.float16)
    length = -(-count // min(STREAMS, count))
    for begin in {0, length, (count - 1) // length * length}:
        stream = torch.from_numpy(ids[begin : begin + length].astype(np.int64))[:, None]
        with torch.no_grad():
            wanted = torch.stack([teacher(stream)[0].softmax(-1) for teacher in teachers]).mean(0)[:, 0]
        torch.testing.assert_close(found[begin : begin + length].float(), wanted, rtol=2e-3, atol=1e-4)


def lessons(own: bool, predictions: torch.Tensor, ids: np.ndarray) -> Lessons:
    return Lessons(torch.from_numpy(ids.astype(np.int64)), predictions, torch.full((len(ids),), own))


def loss_of(taught: Lessons, *, order: str = "streams", **options: Any) -> tuple[float, float, dict[str, np.ndarray]]:
    """The loss of a step towards the lessons, that of an ordinary step on the same batch, and the weights after it."""
    student = model(5, **options).train()
    optimizer = cw.make_optimizer(student, TrainingConfig(optimizer="adam", learning_rate=1e-2))
    dataset, _ = taught.dataset(SequenceConfig(order=order, batch=4, seq_length=16), seed=1)
    inputs, targets = map(torch.from_numpy, next(dataset.batches(0)))
    with torch.no_grad():
        ordinary, _ = student.loss(taught.ids[inputs], taught.ids[targets])
    found = taught.step(student, Batch(inputs, targets, None, torch.Generator()), optimizer)
    return float(found), float(ordinary), student.arrays()


@pytest.mark.parametrize("options", [{}, {"ngram_bits": 6, "ngram_order": 3}])
@pytest.mark.parametrize("order", ["streams", "windows"])
def test_teachers_that_know_the_text_make_an_ordinary_step(order: str, options: dict[str, Any]) -> None:
    ids = some_ids(300)
    certain = torch.nn.functional.one_hot(torch.from_numpy(np.roll(ids, -1).astype(np.int64)), V).half()
    found, ordinary, after = loss_of(lessons(False, certain, ids), order=order, **options)
    assert found == pytest.approx(ordinary, rel=1e-5)
    student = model(5, **options).train()
    optimizer = cw.make_optimizer(student, TrainingConfig(optimizer="adam", learning_rate=1e-2))
    dataset, _ = lessons(False, certain, ids).dataset(SequenceConfig(order=order, batch=4, seq_length=16), seed=1)
    inputs, targets = (torch.from_numpy(ids[part].astype(np.int64)) for part in next(dataset.batches(0)))
    cw.train_step(student, Batch(inputs, targets, None, torch.Generator()), optimizer)
    for name, array in student.arrays().items():
        np.testing.assert_allclose(after[name], array, rtol=1e-4, atol=1e-5)


def test_in_a_text_of_ones_own_the_text_counts_too() -> None:
    ids = some_ids(300)
    stubborn = torch.nn.functional.one_hot(torch.zeros(len(ids), dtype=torch.int64), V).half()
    mixed, ordinary, _ = loss_of(lessons(True, stubborn, ids))
    soft, _, _ = loss_of(lessons(False, stubborn, ids))
    assert mixed == pytest.approx(HARD * ordinary + (1 - HARD) * soft, rel=1e-6)
    assert mixed != pytest.approx(soft, rel=1e-4)


# The teachers of a run.


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def folders(text: Path, tmp_path: Path) -> list[Path]:
    places = [tmp_path / "one", tmp_path / "two"]
    for seed, place in enumerate(places, 1):
        cw.train(text, out=place, steps=60, seed=seed, **OPTIONS)
    return places


def weights(run: Run | Path) -> bytes:
    folder = run if isinstance(run, Path) else run.folder
    return (folder / "model.safetensors").read_bytes()


def test_a_fifth_of_what_is_read_is_the_text(text: Path, folders: list[Path]) -> None:
    teachers = Teachers.of(folders)
    training, _ = cw.split_corpus(TEXT, teachers.runs[0].config.recipe.split)
    own = teachers.vocabulary.encode(training)
    compute = Compute.choose("cpu", precision="f32")
    settings = TrainingConfig(written=40_000, seed=3)
    found = teachers.lessons(training, compute, settings)
    assert int(found.own.sum()) == 4 * len(own)  # 40,000 tokens for 2,300
    assert 0.15 < found.own.float().mean() < 0.25
    first = int(found.own.nonzero()[0])
    assert np.array_equal(found.ids[first : first + len(own)].numpy(), own)
    text_alone = TextProfile(len(training), len(teachers.vocabulary), "Latin", len(own))
    profile = teachers.profile(text_alone, settings)
    assert len(found.ids) == pytest.approx(profile.read, abs=128)
    assert profile.once == pytest.approx(0.7 * profile.read, abs=1)  # two teachers
    assert torch.equal(found.ids, teachers.lessons(training, compute, settings).ids)
    other = teachers.lessons(training, compute, dataclasses.replace(settings, seed=4))
    assert not torch.equal(found.ids[:first], other.ids[:first])
    alone = teachers.lessons(training, compute, TrainingConfig(written=0))
    assert np.array_equal(alone.ids.numpy(), own)


@given(own=st.integers(2, 10**7), written=st.integers(0, 10**7), size=st.integers(2, 30_000))
def test_predictions_fit_into_memory(own: int, written: int, size: int) -> None:
    class Sized(Teachers):
        _most = distillation.MOST_BYTES // (2 * size)

    teachers = Sized((), ())
    if own <= teachers._most:
        text = TextProfile(own, size, "Latin", own)
        beside = teachers.profile(text, TrainingConfig(written=written)).beside
        assert beside >= 0
        assert own + beside <= 1.25 * teachers._most + 2
        assert written or beside == 0


def test_a_run_with_teachers(charwright: Terminal, text: Path, folders: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    run = cw.train(text, out=tmp_path / "run", teachers=folders, notify=said.append, **STUDENT)
    assert [entry.folder for entry in run.config.teachers] == [str(folder.resolve()) for folder in folders]
    assert run.vocabulary == Run.open(folders[0]).vocabulary
    assert any("more tokens (the teachers' text) are read" in line for line in said)
    assert any(line.startswith("learns from 2 teachers") for line in said)
    words = [part for folder in folders for part in ("--teacher", folder)]
    words += ["--steps", "30", "--written", "4000", *SMALL]
    assert charwright("train", text, "--out", tmp_path / "shell", *words).code == 0
    assert weights(run) == weights(tmp_path / "shell")
    assert weights(run) != weights(cw.train(text, out=tmp_path / "alone", steps=30, **OPTIONS))
    shown = charwright("info", tmp_path / "run").out
    assert f"Learns from the predictions of {folders[0].resolve()}, {folders[1].resolve()}" in shown
    assert len(cw.load(tmp_path / "run").generate("To be", length=20)[0].continuation) == 20
    planned = cw.plan(text, teachers=folders, **STUDENT)
    assert planned.recipe == run.config.recipe
    assert planned.passes < cw.plan(text, **STUDENT).passes / 2


def test_resume_with_teachers_equals_never_stopping(text: Path, folders: list[Path], tmp_path: Path) -> None:
    whole = cw.train(text, out=tmp_path / "whole", teachers=folders, **STUDENT)
    asked = iter([None] * 11 + ["enough"])
    half = cw.train(text, out=tmp_path / "half", teachers=folders, should_stop=lambda: next(asked), **STUDENT)
    assert weights(half) != weights(whole)
    assert weights(cw.resume(half)) == weights(whole)


def test_a_stop_while_the_teachers_write_leaves_nothing(text: Path, folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"before the first step \(SIGTERM\)"):
        cw.train(text, out=tmp_path / "run", teachers=folders, should_stop=lambda: "SIGTERM", **STUDENT)
    assert not (tmp_path / "run").exists()


def test_a_resume_needs_the_same_teachers(text: Path, folders: list[Path], tmp_path: Path) -> None:
    run = cw.train(text, out=tmp_path / "run", teachers=folders, **STUDENT)
    before = weights(run)
    folders[1].rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"which it needs to resume: .*two"):
        cw.resume(run, steps=40)
    cw.train(text, out=folders[1], steps=61, seed=2, **OPTIONS)
    with pytest.raises(RunError, match="has other weights than when"):
        cw.resume(run, steps=40)
    shutil.rmtree(folders[1])
    (tmp_path / "elsewhere").rename(folders[1])
    assert weights(cw.resume(run, steps=40)) != before


def test_teachers_that_cannot_be_used(text: Path, folders: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("an entirely different text, with z\n" * 60, encoding="utf-8")
    stranger = cw.train(other, out=tmp_path / "stranger", steps=5, **OPTIONS)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {i}\n" for i in range(300)), encoding="utf-8")
    listed = cw.train(names, out=tmp_path / "listed", records="line", steps=5, **OPTIONS)
    for teachers, message in (
        ([folders[0], stranger.folder], "another vocabulary"),
        ([stranger.folder], "does not know: ' '|does not know: "),
        ([listed.folder], "was trained on records"),
        ([tmp_path / "missing"], "no run"),
    ):
        with pytest.raises((UsageError, RunError), match=message):
            cw.train(text, out=tmp_path / "new", teachers=teachers, **STUDENT)
    for options, message in (
        ({"records": "line"}, "leave out `records`"),
        ({"parent": folders[0]}, "choose one"),
        ({"out": tmp_path, "force": True}, "`force=True` would remove"),
    ):
        with pytest.raises(UsageError, match=message):
            cw.train(text, **{"out": tmp_path / "new", "teachers": folders, **STUDENT, **options})
    assert not (tmp_path / "new").exists()
    assert folders[0].exists()


def test_teachers_write_less_in_little_time() -> None:
    assert written_tokens(TrainingConfig(steps=3)) == written_tokens(TrainingConfig(minutes=9.0)) == 300_000
    assert written_tokens(TrainingConfig(minutes=0.2)) == 30_000
    assert written_tokens(TrainingConfig(minutes=0.2, written=7)) == 7


def test_a_resume_with_another_budget_reads_the_same_text(text: Path, folders: list[Path], tmp_path: Path) -> None:
    run = cw.train(text, out=tmp_path / "run", teachers=folders[:1], minutes=0.02, **OPTIONS)
    assert run.config.recipe.training.written == 3_000
    assert cw.resume(run, minutes=0.03).config.recipe.training.written == 3_000


def test_a_plan_leaves_time_for_what_the_teachers_predict() -> None:
    text = TextProfile(18_000, 60, "Latin", 18_000)
    options, speeds = {"minutes": 1.0, "units": 128}, {128: 50_000.0}
    free = make_plan(text, options, speeds)
    taught = make_plan(dataclasses.replace(text, once=1_000_000), options, speeds)
    assert (free.passes - taught.passes) * 18_000 == pytest.approx(1_000_000)
    assert taught.speed == pytest.approx(free.speed)
    assert make_plan(dataclasses.replace(text, once=10**9), options, speeds).passes == 0


def test_the_vocabulary_is_that_of_the_teachers(charwright: Terminal, text: Path, tmp_path: Path) -> None:
    text.write_text(TEXT + "@", encoding="utf-8")
    teacher = cw.train(text, out=tmp_path / "rare", min_count=2, steps=20, **OPTIONS)
    run = cw.train(text, out=tmp_path / "run", teachers=str(teacher.folder), **STUDENT)
    assert run.config.recipe.vocabulary == teacher.config.recipe.vocabulary
    for options in ({"level": "byte"}, {"min_count": 3}):
        with pytest.raises(UsageError, match="is that of the teachers"):
            cw.train(text, out=tmp_path / "new", teachers=[teacher.folder], **{**STUDENT, **options})
    chinese = tmp_path / "chinese.txt"
    chinese.write_text("床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。\n" * 60, encoding="utf-8")
    refused = charwright("train", chinese, "--teacher", teacher.folder, "--out", tmp_path / "new")
    assert "does not know" in refused.line
    assert "% of it)" in refused.line
    twice = charwright("train", text, "--teacher", teacher.folder, "--teacher", teacher.folder)
    assert "is named twice" in twice.line
    assert "--written belongs to" in charwright("train", text, "--written", "7").line


def test_a_text_that_is_too_long_for_predictions(
    text: Path, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "MOST_BYTES", 50_000)
    with pytest.raises(UsageError, match="is for shorter texts"):
        cw.train(text, out=tmp_path / "new", teachers=folders, **STUDENT)


def test_another_held_out_part_is_said(text: Path, folders: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    cw.train(text, out=tmp_path / "same", teachers=folders[:1], val_limit=None, notify=said.append, **STUDENT)
    cw.train(text, out=tmp_path / "file", teachers=folders[:1], validation=text, notify=said.append, **STUDENT)
    assert not [line for line in said if "held out another part" in line]
    cw.train(text, out=tmp_path / "new", teachers=folders[:1], val_split="tail", notify=said.append, **STUDENT)
    assert [line for line in said if "held out another part" in line] == [
        f"note: {folders[0].resolve()} held out another part of this text, so it has seen some of what is held out now"
    ]


def test_the_command_line_says_what_does_not_go_together(charwright: Terminal, text: Path, folders: list[Path]) -> None:
    assert "cannot change on --resume" in charwright("train", "--resume", folders[0], "--teacher", folders[1]).line
    assert "choose one" in charwright("train", text, "--from", folders[0], "--teacher", folders[1]).line


def test_config_json_has_the_teachers(folders: list[Path]) -> None:
    config = Run.open(folders[0]).config
    assert "teachers" not in config.to_json()
    taught = dataclasses.replace(config, teachers=(Teacher("/runs/a", "0" * 64),))
    values = json.loads(json.dumps(taught.to_json()))
    assert RunConfig.from_json(values, "config.json") == taught
    values["teachers"][0]["run"] = 3
    with pytest.raises(DamagedRunError, match=r"config.json: teachers\[0\].run"):
        RunConfig.from_json(values, "config.json")


# Teachers and what learns from them, in one call.


def steps_of(run: Run | Path) -> int:
    return next(event["step"] for event in reversed(list(Run.open(getattr(run, "folder", run)).log())))


def test_an_ensemble_equals_its_trainings_one_by_one(charwright: Terminal, text: Path, tmp_path: Path) -> None:
    run = cw.train_ensemble(text, count=2, out=tmp_path / "all", seed=3, **STUDENT)
    places = [tmp_path / "all-teachers" / str(number) for number in (1, 2)]
    assert [entry.folder for entry in run.config.teachers] == [str(place.resolve()) for place in places]
    seeds = [Run.open(place).config.recipe.training.seed for place in places]
    assert len({*seeds, 3}) == 3
    for seed, place in zip(seeds, places, strict=True):
        alone = cw.train(text, out=tmp_path / f"alone-{seed}", teaches=True, seed=seed, **STUDENT)
        assert weights(alone) == weights(place)
        assert alone.config == Run.open(place).config
    again = cw.train(text, out=tmp_path / "again", seed=3, teachers=places, **STUDENT)
    assert weights(run) == weights(again)
    words = [
        "--ensemble",
        "2",
        "--out",
        tmp_path / "shell",
        "--seed",
        "3",
        "--steps",
        "30",
        "--written",
        "4000",
        *SMALL,
    ]
    shown = charwright("train", text, *words)
    assert shown.code == 0
    assert f"teacher 2 of 2: {tmp_path / 'shell-teachers' / '2'}\n" in shown.err
    assert weights(run) == weights(tmp_path / "shell")


def test_the_minutes_are_divided(text: Path, tmp_path: Path) -> None:
    run = cw.train_ensemble(text, count=2, out=tmp_path / "all", minutes=0.01, written=0, **OPTIONS)
    shares = [Run.open(tmp_path / "all-teachers" / name).config.recipe.training.minutes for name in ("1", "2")]
    assert [*shares, run.config.recipe.training.minutes] == pytest.approx([0.003, 0.003, 0.004])


@pytest.mark.parametrize("stop_after", [10, 40, 70])
def test_the_same_call_goes_on(text: Path, tmp_path: Path, stop_after: int) -> None:
    """Stopped in the first teacher, in the second, and in the model that learns from both."""
    whole = cw.train_ensemble(text, count=2, out=tmp_path / "whole", **STUDENT)
    places = [tmp_path / "half-teachers" / name for name in ("1", "2")]
    asked = iter([None] * stop_after + ["enough"])
    half = cw.train_ensemble(text, count=2, out=tmp_path / "half", should_stop=lambda: next(asked), **STUDENT)
    assert half.folder == (tmp_path / "half" if stop_after > 60 else places[stop_after // 30])
    assert 0 < steps_of(half) < 30
    said: list[str] = []
    done = cw.train_ensemble(text, count=2, out=tmp_path / "half", notify=said.append, **STUDENT)
    assert weights(done) == weights(whole)
    assert sum(line.endswith("trained before") for line in said) == stop_after // 30
    with pytest.raises(RunError, match="has learned from its teachers"):
        cw.train_ensemble(text, count=2, out=tmp_path / "half", **STUDENT)
    before = weights(tmp_path / "half-teachers" / "1")
    forced = cw.train_ensemble(text, count=2, out=tmp_path / "half", force=True, **{**STUDENT, "steps": 3})
    assert steps_of(forced) == 3
    assert weights(tmp_path / "half-teachers" / "1") == before


def test_what_an_ensemble_refuses(charwright: Terminal, text: Path, folders: list[Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    letters = np.random.Generator(np.random.Philox(key=1)).integers(97, 123, (3_000, 7))
    names.write_text(
        "".join(bytes(row[: 3 + row[0] % 5]).decode() + "\n" for row in letters.astype(np.uint8)), encoding="utf-8"
    )
    out = ["--out", tmp_path / "new", "--steps", "2"]
    for words, message in (
        ([text, "--ensemble", "65"], "from 1 to 64, or 0 for one model, not 65"),
        ([text, "--ensemble", "-1", "--explain-plan"], "from 1 to 64, or 0 for one model, not -1"),
        ([text, "--ensemble", "2", "--explain-plan", "--from", folders[0]], "leave out --from and --teacher"),
        ([text, "--ensemble", "0", "--written", "100"], "--written belongs to --teacher and --ensemble"),
        ([names, "--ensemble", "2"], "--records none"),
        (["-", "--ensemble", "2"], "keep standard input in a file"),
        ([text, "--validation", "-", "--ensemble", "2"], "keep standard input in a file"),
        ([text, "--ensemble", "2", "--from", folders[0]], "leave out --from and --teacher"),
        ([text, "--ensemble", "2", "--teacher", folders[0]], "leave out --from and --teacher"),
        (["--resume", folders[0], "--ensemble", "2"], "leave out --resume"),
        ([text, "--ensemble", "2", "--minutes", "0"], "must be above 0"),
        ([text, "--ensemble", "2", "--seed", "-1"], "--seed"),
    ):
        assert message in charwright("train", *words, *(out if "--resume" not in words else [])).line
    assert not (tmp_path / "new-teachers").exists()
    for count, wrong in ((0, "for one model, call"), ("2", "not '2'")):
        with pytest.raises(UsageError, match=wrong):
            cw.train_ensemble(text, count=count, out=tmp_path / "three", **STUDENT)
    with pytest.raises(ConfigError, match="`dropout`"):
        cw.train_ensemble(text, count=1, out=tmp_path / "three", dropout=3, **STUDENT)
    assert not (tmp_path / "three-teachers").exists()


def test_a_larger_budget_trains_the_teachers_longer(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run-teachers" / "1").mkdir(parents=True)  # An empty folder is no teacher.
    cw.train_ensemble(text, count=1, out=tmp_path / "run", **STUDENT)
    cw.train_ensemble(text, count=1, out=tmp_path / "run", force=True, **{**STUDENT, "steps": 40})
    assert steps_of(tmp_path / "run-teachers" / "1") == steps_of(tmp_path / "run") == 40


def test_a_larger_budget_changes_no_teacher_of_a_model_that_has_begun(text: Path, tmp_path: Path) -> None:
    asked = iter([None] * 40 + ["enough"])
    stopped = cw.train_ensemble(text, count=1, out=tmp_path / "run", should_stop=lambda: next(asked), **STUDENT)
    assert stopped.folder == tmp_path / "run"
    with pytest.raises(UsageError, match="run-teachers/1, which was trained for less; give the budget that it began"):
        cw.train_ensemble(text, count=1, out=tmp_path / "run", **{**STUDENT, "steps": 40})
    teacher = (tmp_path / "run-teachers" / "1").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="run-teachers/1, which is gone"):
        cw.train_ensemble(text, count=1, out=tmp_path / "run", **STUDENT)
    teacher.rename(tmp_path / "run-teachers" / "1")
    cw.train_ensemble(text, count=1, out=tmp_path / "run", **STUDENT)
    assert steps_of(tmp_path / "run-teachers" / "1") == steps_of(tmp_path / "run") == STUDENT["steps"]


def test_a_teacher_that_a_kill_left_half_created_is_trained(text: Path, tmp_path: Path) -> None:
    left = tmp_path / "run-teachers" / "1"
    left.mkdir(parents=True)
    for name in (".lock", "vocabulary.json"):
        (left / name).touch()
    assert cw.train_ensemble(text, count=1, out=tmp_path / "run", **STUDENT).folder == tmp_path / "run"


def test_force_replaces_teachers_of_another_text_or_options(text: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.txt", tmp_path / "all"
    other.write_text("another text, for other teachers\n" * 60, encoding="utf-8")
    asked = iter([None] * 40 + ["enough"])
    cw.train_ensemble(text, count=2, out=out, should_stop=lambda: next(asked), **STUDENT)  # in the second teacher
    with pytest.raises(UsageError, match="is a teacher of another text; choose another `out`, or train it anew with"):
        cw.train_ensemble(other, count=2, out=out, **STUDENT)
    for options, message in (
        ({"units": 24}, "`units` 16, not 24"),
        ({"seed": 7}, "another `seed`"),
        ({"level": "byte"}, "`level` character, not byte"),
        ({"validation": [other]}, "was validated on another text"),
    ):
        with pytest.raises(UsageError, match=message):
            cw.train_ensemble(text, count=2, out=out, **{**STUDENT, **options})
    with pytest.raises(UsageError, match="`units` 16, which is not given now"):
        cw.train_ensemble(text, count=2, out=out, **{name: STUDENT[name] for name in STUDENT if name != "units"})
    checked = tmp_path / "checked"
    cw.train_ensemble(text, count=1, out=checked, validation=[other], **STUDENT)
    shutil.rmtree(checked)
    with pytest.raises(UsageError, match="was validated on another text"):
        cw.train_ensemble(text, count=1, out=checked, validation=[text], **STUDENT)
    run = cw.train_ensemble(other, count=2, out=out, force=True, **STUDENT)
    assert len(run.vocabulary) == len(cw.Vocabulary.from_text(other.read_text(encoding="utf-8")))
    wider = cw.train_ensemble(other, count=2, out=out, force=True, **{**STUDENT, "units": 24})
    assert [Run.open(entry.folder).model.units for entry in wider.config.teachers] == [24, 24]


def test_without_a_folder_an_ensemble_takes_one_that_is_free(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = iter([None] * 10 + ["enough"])
    cw.train_ensemble(text, count=1, should_stop=lambda: next(asked), **STUDENT)  # in the teacher
    first = cw.train_ensemble(text, count=1, **STUDENT)
    name = first.folder.name
    assert first.folder == Path("runs") / name
    second = cw.train_ensemble(text, count=1, **STUDENT)
    assert second.folder == Path("runs") / f"{name}-2"
    assert Run.open(Path("runs") / f"{name}-2-teachers" / "1").config.sha256 == second.config.sha256
    other = tmp_path / "other" / text.name
    other.parent.mkdir()
    other.write_text("another text of the same name, whose teachers are not done\n" * 60, encoding="utf-8")
    asked = iter([None] * 10 + ["enough"])
    cw.train_ensemble(other, count=1, should_stop=lambda: next(asked), **STUDENT)
    assert cw.train(text, **OPTIONS, steps=2).folder == Path("runs") / f"{name}-4", "those teachers wait in 3"
    assert cw.train_ensemble(text, count=1, **STUDENT).folder == Path("runs") / f"{name}-5"
    asked = iter([None] * 40 + ["enough"])
    cw.train_ensemble(other, count=1, should_stop=lambda: next(asked), **STUDENT)  # in the last model
    assert cw.train_ensemble(text, count=1, **STUDENT).folder == Path("runs") / f"{name}-6"
    assert cw.train_ensemble(other, count=1, **STUDENT).folder == Path("runs") / f"{name}-3"
    assert cw.train_ensemble(text, count=1, force=True, **STUDENT).folder == Path("runs") / name
    (Path("runs") / name / "config.json").write_text("{", encoding="utf-8")
    assert cw.train_ensemble(text, count=1, force=True, **STUDENT).folder == Path("runs") / f"{name}-2"
    (Path("runs") / f"{name}-7-teachers" / "1").mkdir(parents=True)
    assert cw.train_ensemble(text, count=1, seed=9, **STUDENT).folder == Path("runs") / f"{name}-7", "empty folders"


def test_a_folder_without_a_name_of_its_own(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = cw.train_ensemble(text, count=1, out=".", **STUDENT)
    assert [entry.folder for entry in run.config.teachers] == [str((tmp_path / "here-teachers" / "1").resolve())]
    with pytest.raises(UsageError, match="is no place for a new run"):
        cw.train_ensemble(text, count=1, out=Path(tmp_path.anchor), **STUDENT)


def test_teachers_among_runs_are_left_out(
    charwright: Terminal, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cw.train_ensemble(text, count=1, out="runs/one", **STUDENT)
    cw.train(text, out="runs/two", **OPTIONS, steps=2)
    for command in ("plot", "compare"):
        shown = charwright(command, "runs/one", "runs/one-teachers", "runs/two")
        assert shown.code == 0
        assert "runs/one-teachers holds teachers, which are left out; name one as runs/one-teachers/1\n" in shown.err


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 18,000 characters."""
    path = tmp_path_factory.mktemp("short") / "short.txt"
    words = np.random.Generator(np.random.Philox(key=2)).integers(0, len(WORDS), 6_000)
    path.write_text(" ".join(WORDS[word] for word in words)[:17_998] + ".\n", encoding="utf-8")
    return path


WORDS = ["the", "a", "sea", "ship", "sails", "at", "night", "under", "stars", "and", "sings;"]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 4),  # five minutes
        ({"minutes": 4.0}, 4),
        ({"minutes": 3.9}, 0),
        ({"steps": 100_000}, 0),
        ({"epochs": 1_000}, 0),
        ({"records": "none"}, 4),
        ({"records": "line"}, 0),
        ({"target_loss": 1.5}, 0),
        ({"val_fraction": 0.0}, 0),
        ({"units": 32}, 4),
    ],
)
def test_a_plan_has_teachers_for_a_short_text(short: Path, arguments: dict[str, Any], count: int) -> None:
    assert planned_teachers(short, arguments) == count


class Two(Ranks):
    """One of two processes."""

    size = 2


def test_a_plan_has_no_teachers_for_another_training(short: Path, folders: list[Path], tmp_path: Path) -> None:
    assert planned_teachers([short], {}, recipe="tutorial") == 0
    assert planned_teachers([short], {}, parent=folders[0]) == 0
    assert planned_teachers([short], {}, teachers=folders) == 0
    assert planned_teachers([short, "-"], {}) == 0
    assert planned_teachers([short], {}, validation=["-"]) == 0
    assert planned_teachers([short], {"val_fraction": 0.0}, validation=[short]) == 4
    assert planned_teachers([], {}) == 0
    assert planned_teachers([short], {}, ranks=Two()) == 0
    assert planned_teachers([short, short], {}) == 0, "36,000 characters"
    assert planned_teachers([short, short], {"minutes": 11}) == 4
    tiny = tmp_path / "tiny.txt"
    tiny.write_text(short.read_text(encoding="utf-8")[:9_999], encoding="utf-8")
    assert planned_teachers(tiny, {}) == 0
    tiny.write_text(short.read_text(encoding="utf-8")[:9_999] + ".", encoding="utf-8")
    assert planned_teachers(tiny, {}) == 4
    tiny.write_text("天地玄黃，宇宙洪荒。\n日月盈昃，辰宿列張。\n" * 850, encoding="utf-8")
    assert planned_teachers(tiny, {"minutes": 4}) == 4, "18,700 characters of three bytes"
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress(short.read_bytes() * 2))
    assert planned_teachers(packed, {}) == 0
    assert planned_teachers(packed, {"minutes": 11}) == 4
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{a}{b}{c}x\n" for a in WORDS for b in WORDS for c in WORDS), encoding="utf-8")
    assert len(names.read_text(encoding="utf-8")) > 10_000
    assert planned_teachers(names, {}) == 0


def test_the_plan_says_that_it_has_teachers(charwright: Terminal, short: Path) -> None:
    words = ["train", short, "--explain-plan", "--threads", "1"]
    shown = charwright(*words, "--minutes", "4.2")
    assert shown.code == 0
    assert shown.out.startswith(
        "plan: 4 teachers of 0.63 minutes each, and a model that learns from them in 1.68 minutes"
    )
    assert "units and n-grams for 0.63 minutes" in shown.out
    asked = charwright(*words, "--steps", "5", "--ensemble", "2")
    assert asked.out.startswith("plan: 2 teachers, and a model that learns from them; this is the plan of a teacher\n")
    alone = charwright(*words, "--steps", "5", "--ensemble", "0")
    assert ("weight decay 0.1\n" in asked.out, "weight decay 0.3\n" in alone.out) == (True, True)
    assert cw.plan(short, steps=5, threads=1, teaches=True).recipe.training.weight_decay == 0.1
    for options in (["--ensemble", "0"], ["--target-loss", "1"]):
        alone = charwright(*words, "--minutes", "4.2", *options)
        assert "teachers" not in alone.out
        assert "units and n-grams for 4.2 minutes" in alone.out


@pytest.mark.parametrize("options", [["--ensemble", "0"], ["--recipe", "tutorial"], ["--from"], ["--teacher"]])
def test_other_trainings_of_a_short_text_have_one_model(
    charwright: Terminal, short: Path, tmp_path: Path, options: list[str]
) -> None:
    """The folder cannot be used, so none of them trains for four minutes."""
    if options[-1].startswith("--"):
        cw.train(short, out=tmp_path / "other", steps=2, **OPTIONS)
        options = [*options, str(tmp_path / "other")]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    shown = charwright("train", short, "--minutes", "4", "--out", tmp_path / "full", *options)
    assert "--out" in shown.line


def stopped(words: list[str | Path], after: str) -> list[str]:
    """The lines of a `charwright train` that gets a Ctrl-C when a line has a certain text."""
    command = [sys.executable, "-m", "charwright", "train", *map(str, words), "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if after in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, said
    return said


def test_a_planned_ensemble_that_is_stopped(charwright: Terminal, short: Path, tmp_path: Path) -> None:
    run, teachers = tmp_path / "run", tmp_path / "run-teachers"
    said = stopped([short, "--minutes", "5", "--out", run], after="are read")  # the plan of the first teacher
    assert said[0].startswith("plan: 4 teachers, and then"), said
    assert said[1] == f"teacher 1 of 4: {teachers / '1'}\n"
    assert said[-1].endswith("continue with the same command\n")
    assert not run.exists()
    assert "has only teachers so far" in charwright("train", "--resume", run).line


def test_the_advice_to_a_forced_ensemble_that_is_stopped(text: Path, tmp_path: Path) -> None:
    """As long as the old run is there, --force is needed."""
    run = tmp_path / "run"
    cw.train(text, out=run, **OPTIONS, steps=2)
    words: list[str | Path] = [text, "--ensemble", "1", "--steps", "400", "--written", "4000", *SMALL, "--out", run]
    said = stopped([*words, "--force"], after="teacher 1 of 1")
    assert said[-1].endswith("continue with the same command\n")
    weights_before = weights(run)
    said = stopped([*words, "--force"], after="learns from")
    assert said[-1] == "stopped before the first step; the same command begins again\n"
    assert weights(run) == weights_before
    said = stopped([*words, "--force"], after="steps of")  # the last model's summary
    assert said[-1].endswith("continue with the same command, without --force\n")


@pytest.mark.parametrize(("budget", "message"), [({"steps": 5}, "`steps` 30"), ({"epochs": 1}, "`steps` 30")])
def test_a_teacher_that_was_begun_with_a_larger_budget_is_not_mixed_with_others(
    text: Path, tmp_path: Path, budget: dict[str, float], message: str
) -> None:
    asked = iter([None] * 10 + ["enough"])
    cw.train_ensemble(text, count=2, out=tmp_path / "run", should_stop=lambda: next(asked), **STUDENT)
    with pytest.raises(
        UsageError, match=f"run-teachers/1 was begun with {message}; give the budget that it began with"
    ):
        cw.train_ensemble(text, count=2, out=tmp_path / "run", **{**STUDENT, "steps": None, **budget})


def test_the_count_of_an_ensemble_is_a_whole_number(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"from 1 to 64, .* not 2\.5"):
        cw.train_ensemble(text, count=2.5, out=tmp_path / "run", **STUDENT)  # type: ignore[arg-type]


def test_a_teacher_that_is_missing_is_named_as_it_was_given(
    charwright: Terminal, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = charwright("train", text, "--teacher", "nowhere", "--out", "new", "--steps", "2")
    assert "there is no run 'nowhere'" in found.line
