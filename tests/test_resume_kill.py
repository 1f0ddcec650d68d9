"""Whole processes: a run that is killed or stopped and then resumed ends with the weights of an uninterrupted one."""

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

from charwright.training.snapshot import Position, Snapshot
from charwright.workflow.checkpoints import save_checkpoint

TIMEOUT = 60.0  # seconds; only a very busy machine needs that long

OPTIONS = [
    *("--units", "24", "--embedding-size", "8", "--layers", "2", "--cell", "lstm", "--dropout", "0.2"),
    *("--batch", "4", "--seq-length", "16", "--epochs", "12", "--precision", "f32", "--checkpoint-minutes", "0.001"),
    *("--threads", "1", "--device", "cpu"),
]


def write_text(path: Path) -> Path:
    """Write about a thousand words in an order without a period."""
    words = ["the ", "quick\n", "brown ", "fox ", "jumps ", "over "]
    path.write_text("".join(words[i * i * i % 6] + words[i % 5] for i in range(143)), encoding="utf-8")
    return path


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "charwright", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert stdout == "", "stdout is for generated text"
    return process.returncode, stderr


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not done():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
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
def uninterrupted(text: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("whole") / "run"
    code, stderr = finish(start(text, "--out", run, *OPTIONS))
    assert code == 0, stderr
    end = logged(run)[-1]
    assert (end["event"], end["reason"]) == ("end", "done")
    return sha256(run)


def resume(run: Path) -> subprocess.Popen[str]:
    return start("--resume", run, "--threads", "1", "--device", "cpu")


def test_killed_and_stopped_at_random_moments_and_resumed(text: Path, uninterrupted: str, tmp_path: Path) -> None:
    """A kill at or between any steps, Ctrl-C in the resumed run, a kill in the next, and a resume to the end."""
    run, seed = tmp_path / "run", random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    process = start(text, "--out", run, *OPTIONS)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL) if os.name != "nt" else (signal.SIGTERM,):
        goal = steps_done(run) + chance.randrange(1, 40)
        wait_until(lambda goal=goal: steps_done(run) >= goal, process)  # type: ignore[misc]
        time.sleep(chance.random() * 0.02)
        process.send_signal(number)
        code, stderr = finish(process)
        if number == signal.SIGINT:
            assert code == 130, f"seed {seed}: {stderr}"
            assert f"charwright train --resume {run}" in stderr.splitlines()[-1]
            checkpoint, end = logged(run)[-2:]
            assert (checkpoint["event"], end["event"], end["reason"]) == ("checkpoint", "end", "SIGINT")
            assert (run / "checkpoints" / f"step-{end['step']}" / "manifest.json").exists(), "saved where it stopped"
        elif os.name != "nt":
            assert code == -signal.SIGKILL, f"seed {seed}: {stderr}"
        process = resume(run)
    code, stderr = finish(process)
    assert code == 0, f"seed {seed}: {stderr}"
    assert sha256(run) == uninterrupted, f"seed {seed}"
    assert any(event["event"] == "resume" for event in logged(run))


def test_the_weights_to_use_are_written_before_the_checkpoint() -> None:
    """A kill between the two must not leave a complete checkpoint with the weights of an earlier epoch."""
    written = []

    class Recorder:
        def write_weights(self, weights: object) -> None:
            written.append("weights")

        def write_checkpoint(self, *_: object) -> None:
            written.append("checkpoint")

    save_checkpoint(Recorder(), Snapshot(Position(), {}, {}), 2)  # type: ignore[arg-type]
    assert written == ["weights", "checkpoint"]
