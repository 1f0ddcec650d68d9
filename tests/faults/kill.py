"""Kill processes at random instants: `python tests/faults/kill.py --count 1000 [--seed N]`.

Each round runs a command in a process of its own, forked from this one, which has imported everything; kills it with
SIGKILL after a random part of the time that the command takes; and sees that what it wrote is whole or absent, that the
next command completes, with the weights of an undisturbed run where that is promised, and that nothing is left behind.
The counts are printed by command. Another command is added to `COMMANDS`, with what has to hold afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from charwright import cli, kernels
from charwright.compose.text_file import TextFile
from charwright.config import GenerationConfig, ModelConfig, Recipe
from charwright.data.vocabulary import Vocabulary
from charwright.errors import RunNotFoundError
from charwright.generation.generator import Generator
from charwright.generation.paused import fingerprint, paused_precision, read_paused, write_paused
from charwright.generation.session import Session
from charwright.planning.recipes import DEFAULT
from charwright.run import Run
from charwright.tuning.search import Limits, TrialResult, search_in
from charwright.tuning.trial import Outcome

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # Faster than a disk, and its files mean the same.
TEXT = "".join(("the ", "quick\n", "brown ", "fox ", "jumps ", "over ")[i * i * i % 6] for i in range(300))
SMALL = ["--units", "12", "--embedding-size", "6", "--batch", "4", "--seq-length", "16", "--steps", "10"]
SMALL += [
    "--precision",
    "f32",
    "--checkpoint-minutes",
    "0.00001",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--core",
    "fused",
]
PROTOCOL = {"text": "abc", "--minutes-per-trial": 2.0, "--seed": 1, "--threads": 1}
MODEL = ModelConfig(cell="gru", layers=1, units=12, embedding_size=6)
LETTERS = Vocabulary.from_text(TEXT)


def weights(phase: int = 0) -> dict[str, np.ndarray]:
    shapes = MODEL.weight_shapes(len(LETTERS))
    return {
        name: np.sin(np.arange(np.prod(shape)) ** 1.5 + phase).reshape(shape).astype("f4")
        for name, shape in shapes.items()
    }


def instant_trial(recipe: Recipe, should_prune: object) -> Outcome:
    return Outcome("complete", 1 + abs(recipe.model.units - 1024) / 1000 + recipe.model.dropout, 1.0, seconds=1)


def charwright(*arguments: str | Path) -> int:
    return cli.run([str(argument) for argument in arguments])


def forked(action: Callable[[], object], kill_s: float | None = None) -> int | None:
    """The exit code of an action in a process of its own; None if it was killed before its end."""
    process = os.fork()
    if not process:
        code = 70
        try:
            quiet = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(quiet, descriptor)
            done = action()
            code = done if isinstance(done, int) else 0
        finally:
            os._exit(code)
    if kill_s is not None:
        time.sleep(kill_s)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def weights_of(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def check_readable(run: Path) -> bool:
    """Whether there is a run; if so, everything in it is whole."""
    try:
        opened = Run.open(run)
    except RunNotFoundError:
        return False
    if opened.has_weights:
        opened.weights()
        opened.latest_checkpoint()
    list(opened.log())
    return True


def check_tidy(place: Path) -> None:
    """Nothing is left behind: no lock, no temporary file, no folder that a replacement moved away."""
    left = [path for path in place.rglob("*") if path.name.startswith(".") or path.suffix in {".tmp", ".new", ".old"}]
    check(not left, f"left behind: {[str(path.relative_to(place)) for path in left]}")


@dataclass
class Command:
    """What is killed: `prepare` a folder, run `action` in it, and `verify` afterwards; arguments are the folder."""

    prepare: Callable[[Path], object]
    action: Callable[[Path], object]
    verify: Callable[[Path], object]
    usual_s: float = 0.0
    times: int = 4  # in each turn: those that train take longer


class Examples:
    """Folders and results that all rounds share."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.text = place / "text.txt"
        self.text.write_text(TEXT, encoding="utf-8")
        self.parent = Run.save(place / "parent", MODEL, weights(), LETTERS).folder
        self.half, self.whole = place / "half", place / "whole"
        self.done: dict[str, str] = {}
        self.searched: list[Recipe] = []
        check(forked(lambda: self.train(self.whole)) == 0, "training fails")
        self.done["train"] = weights_of(self.whole)
        check(forked(lambda: self.train(self.half, "--steps", "4")) == 0, "training fails")
        from_parent = place / "from"
        check(forked(lambda: self.continue_parent(from_parent)) == 0, "--from fails")
        self.done["from"] = weights_of(from_parent)
        shutil.copytree(self.half, place / "resumed")
        check(forked(lambda: self.resume(place / "resumed")) == 0, "--resume fails")
        self.done["resume"] = weights_of(place / "resumed")

    def train(self, run: Path, *more: str) -> int:
        return charwright("train", self.text, "--out", run, *SMALL, *more)

    def continue_parent(self, run: Path, *more: str) -> int:
        return charwright("train", self.text, "--from", self.parent, "--out", run, *_without_sizes(SMALL), *more)

    def resume(self, run: Path) -> int:
        return charwright("train", "--resume", run, "--steps", "10", "--threads", "1", "--device", "cpu")

    def finish(self, run: Path, expected: str, again: Callable[[Path], int]) -> None:
        """Resume what was killed, or begin again if nothing can be resumed."""
        if check_readable(run):
            if forked(lambda: self.resume(run)) != 0:  # Stopped before it had weights to start from.
                check(not any(Run.open(run).log()), "a run that has begun cannot be resumed")
                check(forked(lambda: again(run)) == 0, "--force fails")
        else:
            check(forked(lambda: again(run)) == 0, "training anew fails")
        check(weights_of(run) == expected, "the weights differ from an undisturbed run")
        check_tidy(run.parent)


def _without_sizes(options: list[str]) -> list[str]:
    return options[4:]


def commands(of: Examples) -> dict[str, Command]:
    """The commands to kill."""
    run = "run"

    def nothing(_: Path) -> None:
        pass

    def copy_of(source: Path) -> Callable[[Path], object]:
        return lambda place: shutil.copytree(source, place / run)

    def verify_forced(place: Path) -> None:
        check(check_readable(place / run) or any(place.glob(f".{run}.replaced-*")), "the old run and the new are gone")
        check(forked(lambda: of.train(place / run, "--force")) == 0, "--force fails")
        check(weights_of(place / run) == of.done["train"], "the weights differ")
        check_tidy(place)

    def save(place: Path) -> None:
        Run.save(place / run, MODEL, weights(1), LETTERS, force=True)

    def verify_import(place: Path) -> None:
        found = check_readable(place / run) or any(place.glob(f".{run}.replaced-*"))
        check(found, "the old model and the new are gone")
        save(place)
        check_readable(place / run)
        check_tidy(place)

    def export(place: Path) -> int:
        return charwright("export", of.parent, "--to", "numpy", "--out", place / "model.npz", "--force")

    def verify_export(place: Path) -> None:
        if (place / "model.npz").exists():
            with np.load(place / "model.npz") as arrays:
                check("head.bias" in arrays, "the export is not whole")
        check(forked(lambda: export(place)) == 0, "the export fails")
        check_tidy(place)

    def compose(place: Path) -> None:
        file = TextFile(place / "story.txt")
        text = file.read() or ""
        for number in range(20):
            file.save(f"{text}{number}\n" * 50, place / "story.txt")

    def verify_compose(place: Path) -> None:
        text = (place / "story.txt").read_text(encoding="utf-8")
        check(text == "once\n" or len(set(text.splitlines())) <= 2, "the text is a mixture")
        compose(place)
        check_tidy(place)

    def state(place: Path) -> None:
        generator = Generator(MODEL, weights(), LETTERS)
        for seed in range(5):
            session = Session(generator.engine, generator.vocabulary)
            drafts = [session.join("the ", GenerationConfig(length=9, seed=seed), 0)]
            while session.advance():
                pass
            write_paused(place / "s", generator.engine, fingerprint(weights()), [d.paused() for d in drafts])

    def verify_state(place: Path) -> None:
        if (place / "s").exists():
            check(paused_precision(place / "s") == "q8", "another precision")
            read_paused(place / "s", Generator(MODEL, weights(), LETTERS).engine, fingerprint(weights()))
        state(place)
        check_tidy(place)

    def search(place: Path) -> list[TrialResult]:
        with search_in(place / "search", lambda: DEFAULT.with_options({"minutes": 2.0}), PROTOCOL) as opened:
            list(opened.run(instant_trial, Limits(trials=6)))
            return opened.results()

    def verify_search(place: Path) -> None:
        if not of.searched:
            of.searched = [result.recipe for result in search(of.place)]
        check([result.recipe for result in search(place)] == of.searched, "a trial was lost, or proposed otherwise")
        check(not list(place.rglob("*.tmp")), "temporary files are left")

    def train_anew(place: Path) -> int:
        return of.train(place, *(["--force"] if check_readable(place) else []))

    def continue_anew(place: Path) -> int:
        return of.continue_parent(place, *(["--force"] if check_readable(place) else []))

    def ends_with(name: str, again: Callable[[Path], int]) -> Callable[[Path], object]:
        return lambda place: of.finish(place / run, of.done[name], again)

    return {
        "train": Command(nothing, lambda p: of.train(p / run), ends_with("train", train_anew), times=1),
        "resume": Command(copy_of(of.half), lambda p: of.resume(p / run), ends_with("resume", of.resume), times=1),
        "from": Command(nothing, lambda p: of.continue_parent(p / run), ends_with("from", continue_anew), times=1),
        "force": Command(copy_of(of.whole), lambda p: of.train(p / run, "--force"), verify_forced, times=1),
        "import": Command(copy_of(of.parent), save, verify_import),
        "export": Command(nothing, export, verify_export),
        "compose": Command(lambda p: (p / "story.txt").write_text("once\n", encoding="utf-8"), compose, verify_compose),
        "state": Command(nothing, state, verify_state),
        "tune": Command(nothing, search, verify_search),
    }


@dataclass
class Report:
    """How many processes were killed, by command, and what did not hold afterwards."""

    killed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.killed.items()))
        total = f"{self.killed.total():,} processes killed: {counts}"
        return f"{total}; {self.ended.total():,} more had ended before; {len(self.problems)} problems"


def run(count: int, seed: int, names: list[str] | None = None) -> Report:
    """Kill this many processes."""
    torch.set_num_threads(1)  # A process with threads cannot be forked safely.
    kernels.load()
    report = Report()
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        examples = Examples(Path(place))
        known = {name: it for name, it in commands(examples).items() if names is None or name in names}
        for command in known.values():
            command.usual_s = _measured(command, Path(place))
        turn = [name for name, command in known.items() for _ in range(command.times)]
        number = 0
        while report.killed.total() < count and len(report.problems) < 20:
            name = turn[number % len(turn)]
            _round(name, known[name], Path(place), random.Random(f"{seed} {number}"), f"seed {seed}, {number}", report)
            number += 1
    return report


def _measured(command: Command, place: Path) -> float:
    folder = place / "measured"
    folder.mkdir()
    command.prepare(folder)
    began = time.monotonic()
    check(forked(lambda: command.action(folder)) == 0, "the command fails undisturbed")
    spent_s = time.monotonic() - began
    shutil.rmtree(folder)
    return spent_s


def _round(name: str, command: Command, place: Path, chance: random.Random, where: str, report: Report) -> None:
    folder = place / "round"
    folder.mkdir()
    command.prepare(folder)
    code = forked(lambda: command.action(folder), kill_s=chance.random() * command.usual_s)
    if code is None:
        report.killed[name] += 1
    else:
        report.ended[name] += 1
    try:
        check(code in {None, 0}, f"exit code {code}")
        command.verify(folder)
    except Exception as error:
        report.problems.append(f"{name}, {where}: {type(error).__name__}: {error}")
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="the commands to kill")
    arguments = parser.parse_args()
    report = run(arguments.count, arguments.seed, arguments.only)
    print(*report.problems, report, sep="\n")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
