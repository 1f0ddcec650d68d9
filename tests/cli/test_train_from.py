"""`charwright train --from`: a new run continues from the weights of another, on another text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charwright.run import Run
from charwright.training import loop
from charwright.training.batch import Batch, make_batch
from charwright.workflow.preparation import origin_of_run
from commands import SMALL, TEXT, Terminal, process

MORE = "Où êtes-vous, né à Noël? To be là, or not to be là: c'est ça.\n" * 40
NEW = "-?NOcvàçéêëù"  # in the order of their code points; none is in TEXT
STEPS = ["--steps", "20", "--threads", "1"]


@pytest.fixture
def more(tmp_path: Path) -> Path:
    path = tmp_path / "more.txt"
    path.write_text(MORE, encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_new_run_has_its_own_folder(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(trained)
    result = charwright("train", more, "--from", trained, *STEPS)
    assert result.code == 0, result.err
    old = Run.open(trained)
    known = f"{len(old.vocabulary.characters)} known characters"
    assert f"continues from {trained} ({known}, {len(NEW)} new: {' '.join(NEW)})\n" in result.err
    assert contents(trained) == before
    run = Run.open("runs/more")
    assert run.vocabulary.characters == old.vocabulary.characters + NEW
    planned = {"dropout": run.model.dropout, "recurrent_dropout": run.model.recurrent_dropout}  # for the new text
    assert run.model == dataclasses.replace(old.model, **planned)
    assert run.config.recipe.sequences == old.config.recipe.sequences
    assert (run.config.recipe.training.steps, run.config.recipe.training.epochs) == (20, None)
    parent = run.config.parent
    assert parent is not None
    assert (parent.folder, parent.step) == (str(trained), old.weights_step())
    assert (parent.characters, parent.sha256) == (old.config.characters, old.config.sha256)
    run.weights()


def test_the_new_run_starts_from_the_weights_of_its_parent(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path
) -> None:
    """With a learning rate of almost zero the weights and the loss stay those of the parent."""
    still = ["--learning-rate", "1e-30", "--weight-decay", "0", "--ngram-rate", "1e-30", "--ngram-decay", "0"]
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *still, *STEPS).code == 0
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


def test_options_that_may_change(charwright: Terminal, trained: Path, more: Path, tmp_path: Path) -> None:
    words = ["--batch", "2", "--dropout", "0.1", "--seed", "7", "--min-count", "100", "--level", "character"]
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *words, *STEPS).code == 0
    run, old = Run.open(tmp_path / "new"), Run.open(trained)
    recipe = run.config.recipe
    assert (recipe.sequences.batch, recipe.model.dropout, recipe.training.seed) == (2, 0.1, 7)
    # Rare characters are not added, but known ones are kept.
    assert run.vocabulary.characters == old.vocabulary.characters + "à"


def test_the_default_budget_is_five_minutes_without_a_target_loss(copy: Path) -> None:
    old = Run.open(copy)
    recipe = old.config.recipe.with_options({"target_loss": 1.5, "learning_rate": 0.003})
    old.rewrite_config(dataclasses.replace(old.config, recipe=recipe))
    training = origin_of_run(copy, {}).recipe.training
    assert (training.minutes, training.epochs, training.steps, training.target_loss) == (5.0, None, None, None)
    assert training.learning_rate == 0.003


def test_the_child_of_a_run_with_a_separate_validation_text_has_the_default_split(
    charwright: Terminal, corpus: Path, more: Path, tmp_path: Path
) -> None:
    words = ["--out", tmp_path / "old", *STEPS, *SMALL, "--validation", more]
    assert charwright("train", corpus, *words).code == 0
    assert charwright("train", more, "--from", tmp_path / "old", "--out", tmp_path / "new", *STEPS).code == 0
    assert Run.open(tmp_path / "new").epochs()[-1]["validation_loss"] is not None


@pytest.mark.parametrize("order", [2, 8])
def test_n_grams_are_inherited_with_their_order(
    charwright: Terminal, corpus: Path, more: Path, tmp_path: Path, order: int
) -> None:
    words = ["--out", tmp_path / "old", "--ngram-bits", "8", "--ngram-order", order, *STEPS, *SMALL]
    assert charwright("train", corpus, *words).code == 0
    still = ["--learning-rate", "1e-30", "--ngram-rate", "1e-30", "--weight-decay", "0", *STEPS]
    result = charwright("train", more, "--from", tmp_path / "old", "--out", tmp_path / "new", *still, *STEPS)
    assert result.code == 0, result.err
    old, new = Run.open(tmp_path / "old"), Run.open(tmp_path / "new")
    planned = {"dropout": new.model.dropout, "recurrent_dropout": new.model.recurrent_dropout}
    assert new.model == dataclasses.replace(old.model, **planned)
    assert (new.model.ngram_bits, new.model.ngram_order) == (8, order)
    array = old.weights()["ngrams.weight"]
    np.testing.assert_allclose(new.weights()["ngrams.weight"], np.pad(array, (0, len(NEW))), atol=1e-7)
    resumed = charwright("train", "--resume", tmp_path / "new", "--ngram-order", "4")
    assert "--ngram-order belongs to the run and cannot change on --resume" in resumed.line


@pytest.mark.parametrize("cell", ["gru", "igru"])
def test_a_multiplicative_layer_is_inherited(
    charwright: Terminal, corpus: Path, more: Path, tmp_path: Path, cell: str
) -> None:
    words = ["--out", tmp_path / "old", "--multiplicative", "--cell", cell, *STEPS, *SMALL]
    assert charwright("train", corpus, *words).code == 0
    still = ["--learning-rate", "1e-30", "--weight-decay", "0", *STEPS]
    result = charwright("train", more, "--from", tmp_path / "old", "--out", tmp_path / "new", *still, *STEPS)
    assert result.code == 0, result.err
    old, new = Run.open(tmp_path / "old"), Run.open(tmp_path / "new")
    assert new.model.multiplicative
    assert new.model.cell == cell
    assert len(new.vocabulary) > len(old.vocabulary)
    assert old.weights()["recurrent.0.weight_mx"].any()
    for name in (f"recurrent.0.{part}" for part in ("weight_mx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")):
        np.testing.assert_allclose(new.weights()[name], old.weights()[name], atol=1e-7)


def test_thousands_of_new_characters_and_bytes(
    charwright: Terminal, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    chinese = tmp_path / "chinese.txt"
    chinese.write_text("".join(chr(0x4E00 + i * i % 3001) for i in range(6000)), encoding="utf-8")
    result = charwright("train", chinese, "--from", trained, "--out", tmp_path / "new", *STEPS)
    assert result.code == 0, result.err
    assert " new: 一 丁 " in result.err
    assert " ...)\n" in result.err
    assert len(Run.open(tmp_path / "new").vocabulary) > 1000
    assert charwright("train", corpus, "--out", tmp_path / "bytes", "--level", "byte", *STEPS, *SMALL).code == 0
    result = charwright("train", chinese, "--from", tmp_path / "bytes", "--out", tmp_path / "bytes2", *STEPS)
    assert result.code == 0, result.err
    assert f"continues from {tmp_path / 'bytes'} (bytes, as before)" in result.err
    assert len(Run.open(tmp_path / "bytes2").vocabulary) == 257


def test_no_new_characters(charwright: Terminal, trained: Path, corpus: Path, tmp_path: Path) -> None:
    result = charwright("train", corpus, "--from", trained, "--out", tmp_path / "new", *STEPS)
    assert "known characters, none new)\n" in result.err
    assert Run.open(tmp_path / "new").vocabulary == Run.open(trained).vocabulary


def test_info_shows_the_parent(charwright: Terminal, trained: Path, more: Path, tmp_path: Path) -> None:
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *STEPS).code == 0
    step = Run.open(trained).weights_step()
    wanted = f"Continues from {trained} at step {step}, trained on {len(TEXT):,} characters\n"
    assert wanted in charwright("info", tmp_path / "new").out
    facts = json.loads(charwright("info", tmp_path / "new", "--json").out)
    assert facts["from"]["run"] == str(trained)
    assert "from" not in json.loads(charwright("info", trained, "--json").out)


# Resumes.


def test_a_resume_equals_never_stopping(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at its first step, then stopped in the middle: the same bits."""
    words = ["--from", trained, "--steps", "60", "--threads", "1"]
    assert charwright("train", more, "--out", tmp_path / "whole", *words).code == 0
    killed = "import os, charwright.training.loop as loop; loop.make_batch = lambda *_: os._exit(9)"
    assert process("train", more, "--out", tmp_path / "killed", *words, prelude=killed).code == 9
    run = Run.open(tmp_path / "killed")
    found = run.latest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 0
    assert len(run.weights()["head.bias"]) == len(run.vocabulary)

    def stop_at_24(pair: Any, hidden: Any, config: Any, step: int, device: Any) -> Batch:
        if step == 24:
            signal.raise_signal(signal.SIGINT)
        return make_batch(pair, hidden, config, step, device)

    monkeypatch.setattr(loop, "make_batch", stop_at_24)
    assert charwright("train", "--resume", run.folder, "--threads", "1").code == 130
    monkeypatch.undo()
    found = run.latest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 25
    resumed = charwright("train", "--resume", run.folder, "--threads", "1")
    assert resumed.code == 0, resumed.err
    assert contents(run.folder)["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]
    assert Run.open(run.folder).config.parent == Run.open(tmp_path / "whole").config.parent


def test_a_run_without_its_initial_checkpoint_does_not_start_from_random_weights(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path
) -> None:
    """A kill before the initial checkpoint leaves a run that cannot resume."""
    assert charwright("train", more, "--from", trained, "--out", tmp_path / "new", *STEPS).code == 0
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    result = charwright("train", "--resume", tmp_path / "new")
    assert result.code == 1
    assert "--from" in result.line


# Refusals.


def test_the_parent_is_never_replaced(charwright: Terminal, copy: Path, more: Path, tmp_path: Path) -> None:
    before = contents(copy)
    (tmp_path / "link").symlink_to(copy, target_is_directory=True)
    for parent, out in ((copy, copy), (tmp_path / "link", copy), (copy, tmp_path / "link")):
        result = charwright("train", more, "--from", parent, "--out", out, "--force", *STEPS)
        assert result.code == 2
        assert "--force would remove" in result.line
        assert charwright("train", more, "--from", parent, "--out", out, *STEPS).code == 1
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--units", "20"], "--units is as in the run"),
        (["--cell", "lstm"], "--cell is as in the run"),
        (["--layers", "1"], "--layers is as in the run"),
        (["--embedding-size", "8"], "--embedding-size is as in the run"),
        (["--no-tied"], "--tied is as in the run"),
        (["--multiplicative"], "--multiplicative is as in the run"),
        (["--no-multiplicative"], "--multiplicative is as in the run"),
        (["--ngram-bits", "6"], "--ngram-bits is as in the run"),
        (["--ngram-order", "4"], "--ngram-order is as in the run"),
        (["--level", "byte"], "--level cannot change"),
        (["--recipe", "tutorial"], "--from uses the options of its run"),
        (["--resume", "x"], "--resume finds"),
        (["--corpus", "x"], "--corpus belongs to --resume"),
    ],
)
def test_options_that_cannot_change(
    charwright: Terminal, trained: Path, more: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = charwright("train", more, "--from", trained, "--out", tmp_path / "new", *STEPS, *words)
    assert result.code == 2
    assert message in result.line
    assert not (tmp_path / "new").exists()


def test_errors_are_one_line(charwright: Terminal, trained: Path, copy: Path, more: Path, tmp_path: Path) -> None:
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
