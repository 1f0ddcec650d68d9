"""`charwright train`: the run folder, resumes, and the sources of texts."""

from __future__ import annotations

import bz2
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charwright.config import CorpusConfig, SplitConfig
from charwright.data.parts import Places
from charwright.run import Run
from charwright.signals import stop_asked
from charwright.training import loop
from charwright.training.batch import Batch, make_batch
from charwright.workflow.texts import read_texts
from commands import SMALL, TEXT, Terminal, process


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_taken_name_gets_a_number(charwright: Terminal, corpus: Path, here: Path) -> None:
    for name in ("hamlet", "hamlet-2"):
        result = charwright("train", corpus, "--steps", "1", *SMALL)
        assert (result.code, result.out) == (0, "")
        assert f"saved {Path('runs') / name};" in result.err
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["hamlet", "hamlet-2"]


def test_force_replaces_a_run(charwright: Terminal, copy: Path, corpus: Path) -> None:
    result = charwright("train", corpus, "--out", copy, "--force", "--steps", "3", *SMALL)
    assert result.code == 0
    assert [event["step"] for event in Run.open(copy).epochs()] == [3]


@pytest.mark.parametrize("mistake", [("--device", "tpu9"), ("--core", "fast")])
def test_an_error_before_training_leaves_no_folder(
    charwright: Terminal, corpus: Path, tmp_path: Path, mistake: tuple[str, str]
) -> None:
    assert charwright("train", corpus, "--out", tmp_path / "new", "--steps", "1", *mistake).code == 2
    assert not (tmp_path / "new").exists()


def test_the_log_has_the_fields_that_readers_need(trained: Path) -> None:
    lines = (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert all({"event", "time_s", "step"} <= event.keys() for event in events)
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert {event["event"] for event in events} == {"start", "step", "epoch", "sample", "checkpoint", "end"}
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2]
    for event in epochs:
        assert {"epoch", "train_loss", "validation_loss", "chars_per_s", "elapsed_s"} <= event.keys()
        assert event["validation_loss"] > 0
    assert [event["time_s"] for event in events] == sorted(event["time_s"] for event in events)


def test_progress_goes_to_stderr_in_plain_lines(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    result = charwright("train", corpus, "--out", tmp_path / "run", "--epochs", "1", *SMALL)
    assert result.out == ""
    assert "\x1b" not in result.err
    assert "\r" not in result.err
    assert "epoch 1  loss " in result.err
    assert f"charwright generate {tmp_path / 'run'}" in result.err


def test_a_resume_with_more_epochs_continues(charwright: Terminal, copy: Path) -> None:
    result = charwright("train", "--resume", copy, "--epochs", "3")
    assert result.code == 0
    run = Run.open(copy)
    assert [event["epoch"] for event in run.epochs()] == [1, 2, 3]
    assert run.config.recipe.training.epochs == 3
    assert [event["event"] for event in run.log()].count("resume") == 1


def test_a_resume_of_a_finished_run_is_reported(charwright: Terminal, copy: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()
    result = charwright("train", "--resume", copy)
    assert result.code == 0
    assert "raise it with --epochs" in result.err
    assert (copy / "model.safetensors").read_bytes() == before


def test_a_model_that_is_worse_than_chance_is_no_quiet_success(
    charwright: Terminal, corpus: Path, tmp_path: Path
) -> None:
    words = ["--steps", "5", "--learning-rate", "1000", *SMALL]
    result = charwright("train", corpus, "--out", tmp_path / "wild", *words)
    assert result.code == 0
    assert "the model is worse than chance: " in result.err
    assert "or with a lower --learning-rate" in result.err
    assert "chance" not in charwright("train", corpus, "--out", tmp_path / "tame", "--steps", "5", *SMALL).err


def test_a_resume_removes_the_leftovers_of_a_kill(charwright: Terminal, copy: Path) -> None:
    (copy / "corpus").mkdir()
    replaced = copy.with_name(f".{copy.name}.replaced-99999999")
    replaced.mkdir()
    names = (".model.safetensors.99999999.tmp", ".config.json.99999999.tmp", "corpus/.stdin.txt.99999999.tmp")
    left = [replaced, *(copy / name for name in names)]
    for path in left[1:]:
        path.write_bytes(b"half")
    assert charwright("generate", copy, "--prompt", "a", "--length", "5").code == charwright("info", copy).code == 0
    assert all(path.exists() for path in left)
    assert charwright("train", "--resume", copy).code == 0
    assert not any(path.exists() for path in left)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_after_the_step_and_a_checkpoint(
    charwright: Terminal,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: signal.Signals,
    code: int,
) -> None:
    def signal_at_5(pair: Any, hidden: Any, config: Any, step: int, device: Any) -> Batch:
        if step == 5:
            signal.raise_signal(sent)
        return make_batch(pair, hidden, config, step, device)

    monkeypatch.setattr(loop, "make_batch", signal_at_5)
    result = charwright("train", corpus, "--out", tmp_path / "run", "--epochs", "1", *SMALL)
    assert result.code == code
    assert result.err.splitlines()[-1].endswith(f"charwright train --resume {tmp_path / 'run'}")
    run = Run.open(tmp_path / "run")
    checkpoint, end = list(run.log())[-2:]
    assert (checkpoint["event"], end["event"], end["reason"], end["step"]) == ("checkpoint", "end", sent.name, 6)
    found = run.latest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 6


def test_a_stop_counts_although_what_reads_the_messages_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-C in `charwright train novel.txt 2>&1 | tee log`, which ends both."""
    reader, writer = os.pipe()
    os.close(reader)
    write = os.write
    monkeypatch.setattr(os, "write", lambda _, message: write(writer, message))
    with stop_asked(b"stopping") as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked() == "SIGINT"
    os.close(writer)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_a_terminal_that_closes_saves_the_run(corpus: Path, tmp_path: Path) -> None:
    """It takes the progress bar away, and sends SIGHUP."""
    import fcntl
    import pty
    import termios

    terminal, side = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "charwright",
        "train",
        corpus,
        "--out",
        tmp_path / "run",
        "--steps",
        "1000000",
        *SMALL,
    ]
    with subprocess.Popen(
        [*map(str, command), "--threads", "1"],
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  (as a terminal does)
    ) as training:
        watchdog = threading.Timer(60, training.kill)
        watchdog.start()
        os.close(side)
        shown = b""
        while b"chars/s" not in shown:
            shown += os.read(terminal, 1 << 16)
        os.close(terminal)
        assert training.wait() == 129
        watchdog.cancel()
    end = list(Run.open(tmp_path / "run").log())[-1]
    assert (end["event"], end["reason"]) == ("end", "SIGHUP")
    assert Run.open(tmp_path / "run").latest_checkpoint() is not None


def test_one_way_to_validate(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    for name, value in (("val-fraction", "0.2"), ("val-limit", "100"), ("val-split", "tail")):
        words = ("--validation", corpus, f"--{name}", value)
        for command in (
            ("train", corpus, "--steps", "1"),
            ("train", corpus, "--explain-plan"),
            ("tune", corpus, "--trials", "1"),
        ):
            result = charwright(*command, *words, *(() if "--explain-plan" in command else ("--out", tmp_path / "run")))
            assert f"--{name} holds out a part: choose one" in result.line
    assert not (tmp_path / "run").exists()


def test_labels_that_are_no_kinds_are_noticed(charwright: Terminal, tmp_path: Path) -> None:
    for name, label in (("numbers", lambda i: f"{i / 7:.3f}"), ("kinds", lambda i: f"{i % 3}")):
        text = tmp_path / f"{name}.tsv"
        text.write_text("".join(f"{label(i)}\tname{i}\n" for i in range(40)), encoding="utf-8")
        words = ("--records", "line", "--label", "first", "--steps", "1", "--out", tmp_path / name, *SMALL)
        result = charwright("train", text, *words)
        assert ("have 40 different labels, too many to learn" in result.err) == (name == "numbers")


def test_force_keeps_the_text(charwright: Terminal, copy: Path) -> None:
    text = copy / "corpus" / "stdin.txt"
    text.parent.mkdir()
    text.write_text(TEXT, encoding="utf-8")
    refused = charwright("train", text, "--out", copy, "--force", "--epochs", "1", *SMALL)
    assert f"--force would remove {text}, the text to learn from" in refused.line
    assert text.read_text(encoding="utf-8") == TEXT


def test_too_little_memory_is_one_line(
    charwright: Terminal, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Batch:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(loop, "make_batch", refuse)
    result = charwright("train", corpus, "--out", tmp_path / "run", "--epochs", "1", *SMALL)
    assert (result.code, result.err.splitlines()[-1]) == (1, "charwright: not enough memory")


def test_a_resume_whose_text_has_moved(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    assert charwright("train", corpus, "--out", tmp_path / "run", "--epochs", "1", *SMALL).code == 0
    moved = corpus.rename(tmp_path / "moved.txt")
    refused = charwright("train", "--resume", tmp_path / "run", "--epochs", "2")
    assert refused.code == 1
    assert "--corpus" in refused.line
    assert charwright("train", "--resume", tmp_path / "run", "--epochs", "2", "--corpus", moved).code == 0
    moved.write_text(TEXT + "!", encoding="utf-8")
    changed = charwright("train", "--resume", tmp_path / "run", "--epochs", "3", "--corpus", moved)
    assert changed.code == 1
    assert "SHA-256" in changed.line


def test_a_text_from_stdin_is_kept_for_a_resume(
    charwright: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT.replace("\n", "\r\n").encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    trained = charwright("train", "-", "--out", tmp_path / "run", "--epochs", "1", "--newlines", "keep", *SMALL)
    assert trained.code == 0, trained.err
    assert (tmp_path / "run" / "corpus" / "stdin.txt").read_bytes() == text
    assert charwright("train", "--resume", tmp_path / "run", "--epochs", "2").code == 0
    assert len(Run.open(tmp_path / "run").epochs()) == 2


def test_a_separate_validation_text(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("that is the mind to be nobler\n" * 20, encoding="utf-8")
    words = ["--out", tmp_path / "run", "--epochs", "1", *SMALL, "--validation", other]
    assert charwright("train", corpus, *words).code == 0
    [event] = Run.open(tmp_path / "run").epochs()
    measured = charwright("evaluate", tmp_path / "run", other, "--json")
    assert json.loads(measured.out)["nats_per_char"] == pytest.approx(event["validation_loss"], abs=0.02)
    assert charwright("train", "--resume", tmp_path / "run", "--epochs", "2").code == 0
    other.unlink()
    assert "other.txt" in charwright("train", "--resume", tmp_path / "run", "--epochs", "3").line


def test_without_validation_the_last_weights_are_kept(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    words = ["--out", tmp_path / "run", "--epochs", "1", "--val-fraction", "0", *SMALL]
    assert charwright("train", corpus, *words).code == 0
    run = Run.open(tmp_path / "run")
    assert run.epochs()[0]["validation_loss"] is None
    found = run.latest_checkpoint()
    assert found is not None
    assert all((run.weights()[name] == array).all() for name, array in found[0]["weights"].items())


def test_training_continues_when_stderr_is_closed(tmp_path: Path) -> None:
    (tmp_path / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    words = ["train", tmp_path / "hamlet.txt", "--out", tmp_path / "run", "--epochs", "1", *SMALL]
    command, environment = [sys.executable, "-m", "charwright", *map(str, words)], os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as training:
        assert training.stderr is not None
        training.stderr.close()
        assert training.wait(60) == 0
    assert len(Run.open(tmp_path / "run").epochs()) == 1


def test_standard_input_may_be_closed(
    charwright: Terminal, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert charwright("train", corpus, "--out", tmp_path / "run", "--steps", "1", *SMALL).code == 0
    assert "standard input" in charwright("train", "-").line
    assert charwright("generate", tmp_path / "run", "--length", "5").code == 0


def test_a_compressed_text(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "hamlet.txt.bz2").write_bytes(bz2.compress(TEXT.encode()))
    words = ["train", tmp_path / "hamlet.txt.bz2", "--out", tmp_path / "run", "--steps", "1", *SMALL]
    assert charwright(*words).code == 0
    assert Run.open(tmp_path / "run").config.characters == len(TEXT)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_a_text_whose_name_is_not_unicode(charwright: Terminal, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    try:
        path.write_text(TEXT, encoding="utf-8")
    except OSError:
        pytest.skip("this file system refuses such names")
    assert charwright("train", path, "--out", tmp_path / "run", "--steps", "1", *SMALL).code == 0
    assert Run.open(tmp_path / "run").config.sources[0].location == str(path)
    assert process("info", tmp_path / "run").code == 0


def test_tensorboard_files(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ["train", corpus, "--out", tmp_path / "run", "--epochs", "1", "--tensorboard", *SMALL]
    result = process(*words)
    assert result.code == 0, result.err
    [file] = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"epoch/validation_loss" in file.read_bytes()


def test_tensorboard_that_is_not_installed(corpus: Path, tmp_path: Path) -> None:
    words = ["train", corpus, "--out", tmp_path / "run", "--epochs", "1", "--tensorboard", *SMALL]
    result = process(*words, prelude="sys.modules['tensorboard'] = None")
    assert result.code == 1
    assert "pip install 'charwright[tensorboard]'" in result.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_resume_restores_the_weights(charwright: Terminal, copy: Path, damage: str) -> None:
    weights = copy / "model.safetensors"
    before = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(before[:1000])
        assert f"charwright train --resume {copy} restores it" in charwright("generate", copy, "--prompt", "a").line
    done = charwright("train", "--resume", copy)
    assert done.code == 0
    assert "model.safetensors is written again from the checkpoint of step" in done.err
    assert weights.read_bytes() == before
    assert "written again" not in charwright("train", "--resume", copy).err


def test_a_run_that_has_lost_its_checkpoints_keeps_its_weights(charwright: Terminal, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "model.safetensors").read_bytes()
    result = charwright("train", "--resume", copy, "--steps", "500")
    assert result.code == 1
    assert f"{copy} has lost its checkpoints" in result.line
    assert f"charwright train TEXT --from {copy}" in result.line
    assert (copy / "model.safetensors").read_bytes() == before


def test_so_does_one_that_continues_another(charwright: Terminal, corpus: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert charwright("train", corpus, "--from", trained, "--out", out, "--steps", "2").code == 0
    shutil.rmtree(out / "checkpoints")
    assert f"{out} has lost its checkpoints" in charwright("train", "--resume", out, "--steps", "5").line


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(charwright: Terminal, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    lines = (copy / "log.jsonl").read_text("utf-8").splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(line for line in lines if '"checkpoint"' not in line), "utf-8")
    assert charwright("train", "--resume", copy).code == 0
    assert (copy / "checkpoints").exists()


def test_a_run_is_no_text(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    result = charwright("train", trained, "--out", tmp_path / "run", "--steps", "2")
    assert result.code == 1
    assert f"{trained} is a run, not a text; name a text, or continue it with charwright train --resume" in result.line
    assert not (tmp_path / "run").exists()


def test_commands_in_messages_can_be_pasted(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "my 空格 run"
    result = charwright("train", corpus, "--out", out, "--steps", "2", *SMALL)
    *_, command = result.err.splitlines()[-1].partition("generate with: charwright ")
    assert charwright(*shlex.split(command), "--prompt", "a", "--length", "5").code == 0


def test_a_validation_text_that_is_the_training_text(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    words = ["train", corpus, "--validation", corpus, "--steps", "1", *SMALL, "--out", tmp_path / "run"]
    assert "note: the validation text is the training text" in charwright(*words).err


@pytest.mark.parametrize("known", [True, False])
def test_a_validation_text_from_the_training_text(
    charwright: Terminal, corpus: Path, tmp_path: Path, known: bool
) -> None:
    piece = TEXT[100:400] if known else TEXT[100:400] + "?"
    (tmp_path / "piece.txt").write_text(piece, encoding="utf-8")
    words = ["--validation", tmp_path / "piece.txt", "--steps", "1", *SMALL, "--out", tmp_path / "run"]
    said = charwright("train", corpus, *words).err
    note = "note: the validation text is a part of the training text, so its loss says nothing about new text\n"
    assert (note in said) == known
    assert "is the training text" not in said


def test_a_validation_text_is_not_looked_for_on_disk(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "piece.txt").write_text(TEXT[100:400], encoding="utf-8")
    for limit, notes in ((1 << 20, 1), (1000, 0)):
        said: list[str] = []
        places = Places(tmp_path / "cache", mapped_from_bytes=limit)
        read_texts(corpus, tmp_path / "piece.txt", CorpusConfig(), SplitConfig(), places, said.append)
        assert len([line for line in said if "a part of the training text" in line]) == notes
