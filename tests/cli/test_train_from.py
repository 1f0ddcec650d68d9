"""`charwright train --from`: a trained run goes on with another text, in a folder of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from charwright.run import Run
from commands import SMALL, TEXT, Terminal, process

MORE = "Où êtes-vous, né à Noël? To be là, or not to be là: c'est ça.\n" * 40
NEW = "-?NOcvàçéêëù"  # in the order of their code points; TEXT has none of them
STEPS = ["--steps", "20", "--threads", "1"]


@pytest.fixture
def more(tmp_path: Path) -> Path:
    path = tmp_path / "more.txt"
    path.write_text(MORE, encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_it_goes_on_in_a_folder_of_its_own(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(trained)
    result = charwright("train", more, "--from", trained, *STEPS)
    assert result.code == 0, result.err
    old = Run.open(trained)
    known = f"{len(old.vocabulary.characters)} characters known"
    assert f"goes on from {trained} ({known}, {len(NEW)} new: {' '.join(NEW)})\n" in result.err
    assert contents(trained) == before
    run = Run.open("runs/more")
    assert run.vocabulary.characters == old.vocabulary.characters + NEW
    assert run.model == old.model
    assert run.config.recipe.sequences == old.config.recipe.sequences
    assert (run.config.recipe.training.steps, run.config.recipe.training.epochs) == (20, None)
    parent = run.config.parent
    assert parent is not None
    assert (parent.folder, parent.step) == (str(trained), old.weights_step())
    assert (parent.characters, parent.sha256) == (old.config.characters, old.config.sha256)
    run.weights()


def test_it_begins_with_what_the_other_run_knew(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path
) -> None:
    """With a rate of next to nothing the weights are those of the other run, and it predicts as well as that."""
    still = ["--learning-rate", "1e-30", "--weight-decay", "0", *STEPS]
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *still).code == 0
    old, new = Run.open(trained).weights(), Run.open(tmp_path / "new").weights()
    for name, array in old.items():
        np.testing.assert_allclose(new[name][: len(array)], array, atol=1e-7)
    text = tmp_path / "hamlet.txt"
    text.write_text(TEXT, encoding="utf-8")
    losses = [
        json.loads(charwright("evaluate", run, text, "--json").out)["nats_per_char"]
        for run in (trained, tmp_path / "new")
    ]
    assert 0 < losses[1] - losses[0] < -np.log(1 - sum(map(MORE.count, NEW)) / len(MORE)) + 0.05


def test_options_that_may_change_and_those_that_stay(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path
) -> None:
    words = ["--batch", "2", "--dropout", "0.1", "--seed", "7", "--min-count", "100", "--unit", "character"]
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *words, *STEPS).code == 0
    run, old = Run.open(tmp_path / "new"), Run.open(trained)
    recipe = run.config.recipe
    assert (recipe.sequences.batch, recipe.model.dropout, recipe.training.seed) == (2, 0.1, 7)
    # Characters that are rare are not learned anew, but none that is known is forgotten.
    assert run.vocabulary.characters == old.vocabulary.characters + "à"


def test_without_a_budget_there_are_five_minutes_and_no_mark_of_the_other_text(copy: Path) -> None:
    from charwright.cli.work import trained_run

    old = Run.open(copy)
    recipe = old.config.recipe.with_options({"target_loss": 1.5, "learning_rate": 0.003})
    old.rewrite_config(dataclasses.replace(old.config, recipe=recipe))
    training = trained_run(copy, {}, replaced=None).recipe.training
    assert (training.minutes, training.epochs, training.steps, training.target_loss) == (5.0, None, None, None)
    assert training.learning_rate == 0.003


def test_a_run_with_a_validation_text_of_its_own_hands_on_the_usual_split(
    charwright: Terminal, corpus: Path, more: Path, tmp_path: Path
) -> None:
    words = ["--out", tmp_path / "old", *STEPS, *SMALL, "--validation", more]
    assert charwright("train", corpus, *words).code == 0
    assert charwright("train", more, "--from", tmp_path / "old", "--out", tmp_path / "new", *STEPS).code == 0
    assert Run.open(tmp_path / "new").epochs()[-1]["validation_loss"] is not None


def test_bytes_and_thousands_of_new_characters(
    charwright: Terminal, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    chinese = tmp_path / "chinese.txt"
    chinese.write_text("".join(chr(0x4E00 + i * i % 3001) for i in range(6000)), encoding="utf-8")
    result = charwright("train", chinese, "--from", trained, "--out", tmp_path / "new", *STEPS)
    assert result.code == 0, result.err
    assert " new: 一 丁 " in result.err
    assert " ...)\n" in result.err
    assert len(Run.open(tmp_path / "new").vocabulary) > 1000
    assert charwright("train", corpus, "--out", tmp_path / "bytes", "--unit", "byte", *STEPS, *SMALL).code == 0
    result = charwright("train", chinese, "--from", tmp_path / "bytes", "--out", tmp_path / "bytes2", *STEPS)
    assert result.code == 0, result.err
    assert f"goes on from {tmp_path / 'bytes'} (bytes, as before)" in result.err
    assert len(Run.open(tmp_path / "bytes2").vocabulary) == 257


def test_nothing_new(charwright: Terminal, trained: Path, corpus: Path, tmp_path: Path) -> None:
    result = charwright("train", corpus, "--from", trained, "--out", tmp_path / "new", *STEPS)
    assert "characters known, none new)\n" in result.err
    assert Run.open(tmp_path / "new").vocabulary == Run.open(trained).vocabulary


def test_info_says_where_it_came_from(charwright: Terminal, trained: Path, more: Path, tmp_path: Path) -> None:
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *STEPS).code == 0
    step = Run.open(trained).weights_step()
    wanted = f"Goes on from {trained} at step {step}, which had {len(TEXT):,} characters\n"
    assert wanted in charwright("info", tmp_path / "new").out
    facts = json.loads(charwright("info", tmp_path / "new", "--json").out)
    assert facts["from"]["run"] == str(trained)
    assert "from" not in json.loads(charwright("info", trained, "--json").out)


# Resumes.


def test_a_resume_equals_never_stopping(trained: Path, more: Path, tmp_path: Path) -> None:
    """Stopped at its beginning, by a kill, or in the middle: the same bits."""
    words = ["--from", trained, "--steps", "60", "--threads", "1"]
    assert process("train", more, "--out", tmp_path / "whole", *words).code == 0
    killed = "import charwright.training.trainer as trainer; trainer.Trainer.step = lambda *_: os._exit(9)"
    assert process("train", more, "--out", tmp_path / "begun", *words, prelude=f"import os; {killed}").code == 9
    run = Run.open(tmp_path / "begun")
    found = run.latest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 0
    assert len(run.weights()["head.bias"]) == len(run.vocabulary)
    after = (
        "import signal, charwright.training.trainer as trainer; step = trainer.Trainer.step; "
        "trainer.Trainer.step = lambda self, pair: (step(self, pair), "
        "self.position.step == 25 and signal.raise_signal(signal.SIGINT))"
    )
    assert process("train", "--resume", run.folder, "--threads", "1", prelude=after).code == 130
    found = run.latest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 25
    resumed = process("train", "--resume", run.folder, "--threads", "1")
    assert resumed.code == 0, resumed.err
    assert contents(run.folder)["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]
    assert Run.open(run.folder).config.parent == Run.open(tmp_path / "whole").config.parent


def test_a_run_that_lost_its_beginning_does_not_begin_by_chance(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path
) -> None:
    """A kill before the first checkpoint is whole leaves a run that knows what it needs."""
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *STEPS).code == 0
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    result = charwright("train", "--resume", tmp_path / "new")
    assert result.code == 1
    assert "--from" in result.line


# Mistakes.


def test_the_run_that_it_goes_on_from_is_never_replaced(
    charwright: Terminal, copy: Path, more: Path, tmp_path: Path
) -> None:
    before = contents(copy)
    (tmp_path / "link").symlink_to(copy, target_is_directory=True)
    for parent, out in ((copy, copy), (tmp_path / "link", copy), (copy, tmp_path / "link")):
        result = charwright("train", more, "--from", parent, "--out", out, "--force", *STEPS)
        assert result.code == 2
        assert "--force would take" in result.line
        assert charwright("train", more, "--from", parent, "--out", out, *STEPS).code == 1
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--units", "20"], "--units is as in the run"),
        (["--cell", "lstm"], "--cell is as in the run"),
        (["--layers", "1"], "--layers is as in the run"),
        (["--embedding", "8"], "--embedding is as in the run"),
        (["--no-tied"], "--tied is as in the run"),
        (["--unit", "byte"], "--unit cannot change"),
        (["--recipe", "tutorial"], "--from takes the options of its run"),
        (["--resume", "x"], "--resume finds"),
        (["--corpus", "x"], "--corpus belongs to --resume"),
    ],
)
def test_what_does_not_go_with_it(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    result = charwright("train", more, "--from", trained, "--out", tmp_path / "new", *STEPS, *words)
    assert result.code == 2
    assert said in result.line
    assert not (tmp_path / "new").exists()


def test_mistakes_in_one_line(charwright: Terminal, trained: Path, copy: Path, more: Path, tmp_path: Path) -> None:
    def line(*words: str | Path) -> str:
        result = charwright("train", *words, "--out", tmp_path / "new", *STEPS)
        assert result.code in (1, 2)
        assert not (tmp_path / "new").exists()
        return result.line

    assert "name a text to learn from" in line("--from", trained)
    assert "choose one" in charwright("train", "--from", trained, "--resume", copy).line
    assert "there is no run" in line(more, "--from", tmp_path / "nothing")
    assert "is a file, not a run folder" in line(more, "--from", more)
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")
    assert "is empty" in line(empty, "--from", trained)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "model.safetensors" in line(more, "--from", copy)
    weights.unlink()
    assert "has no trained weights yet" in line(more, "--from", copy)
