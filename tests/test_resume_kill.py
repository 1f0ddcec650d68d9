"""Whole processes: a run that was killed or stopped, and resumed, ends with the weights of one that never was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from charwright.cli.train import _save
from charwright.training.snapshot import Position, Snapshot

ROOM = 60.0  # seconds; only a machine that is very busy needs so many

OPTIONS = [
    *("--units", "24", "--embedding", "8", "--layers", "2", "--cell", "lstm", "--dropout", "0.2"),
    *("--batch", "4", "--seq-length", "16", "--epochs", "16", "--precision", "f32", "--checkpoint-minutes", "0.001"),
    *("--threads", "1", "--device", "cpu"),
]


def write_text(path: Path) -> Path:
    """Words in an order that has no period: some thousand characters."""
    words = ["the ", "quick\n", "brown ", "fox ", "jumps ", "over "]
    path.write_text("".join(words[i * i * i % 6] + words[i % 5] for i in range(143)), encoding="utf-8")
    return path


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "charwright", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    stdout, stderr = process.communicate(timeout=ROOM)
    assert stdout == "", "stdout is for text that was generated"
    return process.returncode, stderr


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + ROOM
    while not done():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def logged(run: Path) -> list[dict[str, object]]:
    path = run / "log.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def steps_done(run: Path) -> int:
    return max((int(str(event["step"])) for event in logged(run)), default=0)


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def never_stopped(text: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("whole") / "run"
    code, stderr = finish(start(text, "--out", run, *OPTIONS))
    assert code == 0, stderr
    end = logged(run)[-1]
    assert (end["event"], end["reason"]) == ("end", "done")
    return sha256(run)


def resume(run: Path) -> subprocess.Popen[str]:
    return start("--resume", run, "--threads", "1", "--device", "cpu")


def test_killed_at_random_moments_and_resumed(text: Path, never_stopped: str, tmp_path: Path) -> None:
    """Twice: at some step or between two of them, and again while the resumed run trains on."""
    run, seed = tmp_path / "run", random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    process = start(text, "--out", run, *OPTIONS)
    for kill in range(2):
        begin = steps_done(run)
        goal = begin + chance.randrange(1, 60)
        wait_until(lambda goal=goal: steps_done(run) >= goal, process)  # type: ignore[misc]
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.communicate(timeout=ROOM)
        assert process.returncode == -signal.SIGKILL, f"kill {kill}, seed {seed}"
        process = resume(run)
    code, stderr = finish(process)
    assert code == 0, f"seed {seed}: {stderr}"
    assert sha256(run) == never_stopped, f"seed {seed}"
    assert any(event["event"] == "resume" for event in logged(run))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
def test_stopped_by_signals_and_resumed(text: Path, never_stopped: str, tmp_path: Path) -> None:
    """Ctrl-C first, SIGTERM to the resumed run, and then to the end."""
    run = tmp_path / "run"
    process = start(text, "--out", run, *OPTIONS)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        goal = steps_done(run) + 25
        wait_until(lambda goal=goal: steps_done(run) >= goal, process)  # type: ignore[misc]
        process.send_signal(number)
        assert finish(process)[0] == code
        checkpoint, end = logged(run)[-2:]
        assert (checkpoint["event"], end["event"], end["reason"]) == ("checkpoint", "end", number.name)
        assert (run / "checkpoints" / f"step-{end['step']}" / "manifest.json").exists(), "saved where it stopped"
        process = resume(run)
    code, stderr = finish(process)
    assert code == 0, stderr
    assert sha256(run) == never_stopped


def test_the_weights_to_use_are_written_before_the_checkpoint() -> None:
    """A kill between the two must not leave a checkpoint that says done beside the weights of an earlier epoch."""
    written = []

    class Recorder:
        def write_weights(self, weights: object) -> None:
            written.append("weights")

        def write_checkpoint(self, *_: object) -> None:
            written.append("checkpoint")

    _save(Recorder(), Snapshot(Position(), {}, {}), 2)  # type: ignore[arg-type]
    assert written == ["weights", "checkpoint"]
