"""What happens to a training by itself: clocks that jump, gradients that are not numbers, and several processes."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import charwright as cw
from charwright.arrays import write_arrays
from charwright.data.sequences import Dataset, make_dataset
from charwright.errors import DivergedError
from charwright.run import Run
from charwright.training import events
from charwright.training.batch import Batch
from charwright.training.budget import steady
from charwright.training.snapshot import Snapshot
from commands import SMALL, TEXT, Terminal
from service_process import serving
from torchrun import log, wait_until

pytestmark = pytest.mark.usefixtures("one_thread")

HOUR = 3600.0
ENDLESS = ["--steps", "1000000", "--checkpoint-minutes", "0.00001", "--log-every", "1", "--val-fraction", "0.2"]
GENERATE = ["--length", "30", "--seed", "1", "--prompt", "To", "--no-prompt", "--precision", "f32"]
COMPUTE = ["--threads", "1", "--device", "cpu", "--core", "fused", "--precision", "f32"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


# Clocks.


class Jumping:
    """A clock that advances by one second per training step, and jumps after some."""

    def __init__(self, jumps: dict[int, float]) -> None:
        self.now, self.steps, self.jumps = 1e6, 0, jumps

    def __call__(self) -> float:
        return self.now

    def train_step(self, model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        self.steps += 1
        self.now += 1.0 + self.jumps.get(self.steps, 0.0)
        return cw.train_step(model, batch, optimizer)


def make_data() -> Dataset:
    ids = np.arange(2000) ** 2 % 11 + 1
    return make_dataset(ids, cw.SequenceConfig(batch=4, seq_length=10), 1)


def make_model() -> cw.LanguageModel:
    return cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=6, layers=1), 12, seed=1)


def fitted(jumps: dict[int, float], **options: Any) -> tuple[list[events.Event], list[Snapshot], cw.LanguageModel]:
    """The events and checkpoints of a training whose clock jumps."""
    clock, taken, model = Jumping(jumps), list[Snapshot](), make_model()
    config = cw.TrainingConfig(**({"learning_rate": 0.01, "log_every": 1} | options))
    seen = list(cw.fit(model, make_data(), config, train_step=clock.train_step, save=taken.append, clock=clock))
    return seen, taken, model


@pytest.mark.parametrize("jump", [-1.0, -30.0, -HOUR, -1e9])
def test_a_clock_that_goes_back_prolongs_a_budget_in_minutes_by_nothing(jump: float) -> None:
    """The second of the step in which it goes back is lost, and no more."""
    usual, _, _ = fitted({}, minutes=2.0)
    seen, taken, _ = fitted({40: jump}, minutes=2.0)
    end = seen[-1]
    assert isinstance(end, events.End)
    assert end.reason == "done"
    assert end.step - usual[-1].step in {0, 1}  # type: ignore[union-attr]
    times = [event.time_s for event in seen]
    assert times == sorted(times)
    assert all(0 <= event.fraction <= 1.1 for event in seen if isinstance(event, events.Step))
    assert taken[-1].position.done


@pytest.mark.parametrize("jump", [30.0, HOUR, 1e9])
def test_a_clock_that_leaps_ahead_ends_a_budget_in_minutes_with_a_checkpoint(jump: float) -> None:
    seen, taken, _ = fitted({40: jump}, minutes=2.0)
    end = seen[-1]
    assert isinstance(end, events.End)
    assert end.reason == "done"
    assert 40 <= end.step < 120
    assert taken[-1].position.done
    assert taken[-1].position.step == end.step
    rates = [event.learning_rate for event in seen if isinstance(event, events.Step)]
    assert all(math.isfinite(rate) and 0 <= rate <= 0.01 for rate in rates)


@pytest.mark.parametrize("jumps", [{30: -HOUR}, {30: HOUR}, {30: -1e9, 60: 1e9}, {9: HOUR, 10: -HOUR}])
def test_a_clock_that_jumps_changes_no_weight_of_a_budget_in_steps(jumps: dict[int, float]) -> None:
    """Checkpoints stay a minute apart, apart from one that a leap ahead brings forward."""
    usual, checkpoints, expected = fitted({}, steps=200, checkpoint_minutes=1.0)
    seen, taken, found = fitted(jumps, steps=200, checkpoint_minutes=1.0)
    assert all(np.array_equal(found.arrays()[name], weight) for name, weight in expected.arrays().items())
    assert abs(len(taken) - len(checkpoints)) <= len(jumps)
    steps = [snapshot.position.step for snapshot in taken]
    assert max(later - earlier for earlier, later in zip([0, *steps], steps, strict=False)) <= 62
    assert seen[-1].step == usual[-1].step == 200  # type: ignore[union-attr]


def test_a_steady_clock_never_goes_back() -> None:
    read = iter([5.0, 6.0, 2.0, 3.0, 1e9, -1e9, -1e9 + 1])
    clock = steady(lambda: next(read))
    assert [clock() for _ in range(7)] == [5.0, 6.0, 6.0, 7.0, 1e9 + 4, 1e9 + 4, 1e9 + 5]


def test_the_wall_clock_does_not_matter(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the clock that is passed in: the other one jumps by years at each look."""

    class Clock:
        def __init__(self) -> None:
            self.now = 0.0

        def __call__(self) -> float:
            self.now += 0.01
            return self.now

    def train(out: Path) -> tuple[list[dict[str, Any]], Run]:
        # A plan would measure this machine, with its own clock.
        options: dict[str, Any] = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16, "precision": "f32"}
        options |= {"learning_rate": 0.01, "dropout": 0.1, "recurrent_dropout": 0.1, "weight_decay": 0.1}
        options["ngram_bits"] = 0
        run = cw.train(text, out=out, minutes=0.05, core="fused", device="cpu", threads=1, clock=Clock(), **options)
        return log(run.folder), run

    events_before, before = train(tmp_path / "before")
    chance = random.Random(1)
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: chance.randrange(-(10**9), 10**10))
    events_after, after = train(tmp_path / "after")
    assert events_after == events_before
    weights = before.weights()
    assert all(np.array_equal(after.weights()[name], weight) for name, weight in weights.items())


# Gradients.


class Poison:
    """Before the optimizer's steps with these numbers, sets an element of a gradient to a value."""

    def __init__(self, value: float, steps: Callable[[int], bool]) -> None:
        self.value, self.wanted, self.steps = value, steps, 0

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.steps += 1
        if self.wanted(self.steps):
            weight = next(weight for group in optimizer.param_groups for weight in group["params"])
            weight.grad.view(-1)[0] = self.value

    def __enter__(self) -> Poison:
        self._hook = register_optimizer_step_pre_hook(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("clip", [[], ["--clip-norm", "1"]], ids=["as usual", "clipped"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_gradient_that_is_no_number_is_one_rollback(
    charwright: Terminal, text: Path, tmp_path: Path, value: float, clip: list[str]
) -> None:
    options = [*SMALL, "--steps", "60", "--log-every", "1", *COMPUTE, *clip]
    with Poison(value, lambda step: step == 50):
        done = charwright("train", text, "--out", tmp_path / "run", *options)
    assert done.code == 0
    assert len(re.findall(r"diverged", done.err)) == 1, done.err
    rollbacks = [event for event in log(tmp_path / "run") if event["event"] == "rollback"]
    assert len(rollbacks) == 1
    run = Run.open(tmp_path / "run")
    assert all(np.isfinite(weight).all() for weight in run.weights().values())
    assert log(tmp_path / "run")[-1]["step"] == 60


def test_gradients_that_stay_no_numbers_end_with_one_line_and_the_last_good_checkpoint(
    charwright: Terminal, text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*SMALL, "--steps", "60", "--log-every", "1", *COMPUTE]
    with Poison(math.nan, lambda step: step >= 50):
        done = charwright("train", text, "--out", run, *options)
    assert done.code == 3
    assert [line for line in done.err.splitlines() if line.startswith("charwright: ")] == [
        line for line in done.err.splitlines() if "training diverges near step" in line
    ]
    assert "earlier checkpoints are intact" in done.err
    assert not (run / ".lock").exists()
    assert charwright("generate", run, "--prompt", "To", "--length", "20", "--seed", "1").code == 0
    resumed = charwright("train", "--resume", run, "--threads", "1")
    assert resumed.code == 0
    assert log(run)[-1]["step"] == 60
    assert all(np.isfinite(weight).all() for weight in Run.open(run).weights().values())


def test_weights_that_are_no_numbers_are_never_written(
    charwright: Terminal, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever step, and with a checkpoint after each."""
    written: list[bool] = []
    write = write_arrays

    def recorded(path: Path, arrays: Any, *metadata: Any) -> None:
        written.append(all(np.isfinite(array).all() for array in arrays.values()))
        write(path, arrays, *metadata)

    monkeypatch.setattr("charwright.run.write_arrays", recorded)
    with Poison(math.nan, lambda step: step % 3 == 2), pytest.raises(DivergedError):
        cw.train(
            text, out=tmp_path / "run", units=16, embedding_size=8, batch=4, seq_length=16, steps=40, core="fused",
            device="cpu", threads=1, checkpoint_minutes=1e-9, precision="f32",
        )  # fmt: skip
    assert len(written) > 5
    assert all(written)


# Several processes on one run folder.


@pytest.fixture
def training(text: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A training in a process of its own, which saves all the time, and its run folder."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "charwright", "train", text, "--out", run, *SMALL, *ENDLESS, *COMPUTE]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **quiet) as process:
        wait_until(lambda: any(run.glob("checkpoints/step-*[0-9]/manifest.json")), process)
        yield process, run
        process.kill()


def test_a_second_training_is_refused_until_the_first_is_gone(
    charwright: Terminal, text: Path, training: tuple[subprocess.Popen[str], Path]
) -> None:
    process, run = training
    resume = ("train", "--resume", run, "--threads", "1", "--device", "cpu")
    force = ("train", text, "--out", run, "--force", *SMALL, "--steps", "2", *COMPUTE)
    steps = max(event["step"] for event in log(run))
    for command in (resume, force):
        refused = charwright(*command)
        assert refused.code == 1
        [line] = [line for line in refused.err.splitlines() if line.startswith("charwright: ")]
        assert f"another process trains in {run}: process {process.pid} on " in line
    wait_until(lambda: max(event["step"] for event in log(run)) > steps, process)  # The first is undisturbed.
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / ".lock").exists(), "the file stays, and its lock is gone"
    steps = max(event["step"] for event in log(run))
    resumed = charwright(*resume, "--steps", str(steps + 3))
    assert resumed.code == 0, resumed.err
    assert not (run / ".lock").exists()


def test_readers_are_served_while_training_writes(
    charwright: Terminal, text: Path, training: tuple[subprocess.Popen[str], Path]
) -> None:
    process, run = training
    seen, began = set(), time.monotonic()
    while len(seen) < 4 or time.monotonic() - began < 1:
        written = charwright("generate", run, *GENERATE)
        assert (written.code, len(written.out.rstrip("\n")) > 0) == (0, True), written.err
        seen.add(written.out)
        shown = charwright("info", run, "--json")
        assert shown.code == 0, shown.err
        assert json.loads(shown.out)["parameters"] > 0
        measured = charwright("evaluate", run, text, "--json")
        assert measured.code == 0, measured.err
        assert 0 < json.loads(measured.out)["nats_per_char"] < 20
        assert time.monotonic() - began < 60
    assert process.poll() is None
    with serving(run) as (_, port):
        for number in range(3):
            body = json.dumps({"model": "run", "prompt": "To be", "max_tokens": 20, "seed": number}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert len(json.load(answer)["choices"][0]["text"]) > 0
    assert process.poll() is None
