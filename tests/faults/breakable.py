"""The commands that are killed and whose disks are broken, and what has to hold afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent.parent))  # This is imported by scripts too.

from charwright import cli, kernels
from charwright.config import ModelConfig, Recipe
from charwright.data.text_cache import IDS, MANIFEST, OFFSETS, UTF8, TextCache
from charwright.data.vocabulary import Vocabulary
from charwright.errors import RunNotFoundError
from charwright.interop.keras_files import weights_h5_bytes
from charwright.interop.keras_weights import to_keras
from charwright.planning.recipe_file import read_recipe
from charwright.planning.recipes import DEFAULT
from charwright.run import Run
from charwright.tuning.search import Limits, TrialResult, search_in
from charwright.tuning.shared import shared_search
from charwright.tuning.trial import Outcome
from forks import Ended, Strike, children, forked
from search_worker import PROTOCOL, QUICK, START, loss_of

TEXT = "".join(("the ", "quick\n", "brown ", "fox ", "jumps ", "over ")[i * i * i % 6] for i in range(300))
SIZES = ["--units", "12", "--embedding-size", "6"]
COMPUTE = ["--threads", "1", "--device", "cpu", "--core", "fused"]
OPTIONS = ["--batch", "4", "--seq-length", "16", "--steps", "10", "--precision", "f32"]
OPTIONS += ["--checkpoint-minutes", "0.00001", *COMPUTE]
MODEL = ModelConfig(cell="gru", layers=1, units=12, embedding_size=6)
LETTERS = Vocabulary.from_text(TEXT)
LARGE = 64 << 20  # bytes, from which a text is prepared
STORY = "once\n"
RUN = "run"

Again = Callable[[Callable[[], object]], Ended]
"""Completes what was killed; on the way it may be killed itself, once or twice."""


def load_everything() -> None:
    """Import what the commands import, so that forked processes begin their work at once."""
    torch.set_num_threads(1)  # A process with threads cannot be forked safely.
    kernels.load()
    for name in ("h5py", "onnx", "numpy.random", "platformdirs", "rich.progress", "torch._dynamo"):
        importlib.import_module(name)
    for name in cli.COMMANDS:
        importlib.import_module(f"charwright.cli.{cli.FILES.get(name, name)}")
    for name in ("compose.editor", "generation.session", "workflow.training", "interop.onnx_export"):
        importlib.import_module(f"charwright.{name}")


def weights(phase: int = 0) -> dict[str, np.ndarray]:
    shapes = MODEL.weight_shapes(len(LETTERS))
    return {
        name: np.sin(np.arange(np.prod(shape)) ** 1.5 + phase).reshape(shape).astype("f4")
        for name, shape in shapes.items()
    }


def instant_trial(recipe: Recipe, should_prune: object) -> Outcome:
    return Outcome("complete", 1 + abs(recipe.model.units - 1024) / 1000 + recipe.model.dropout, 1.0, seconds=1)


def short_trial(recipe: Recipe, should_prune: object) -> Outcome:
    time.sleep(0.02)
    return Outcome("complete", loss_of(recipe), 1.0, seconds=0.02)


def charwright(*arguments: str | Path) -> int:
    return cli.run([str(argument) for argument in arguments])


def torchrun(*arguments: str | Path) -> None:
    """Two ranks: what the command `torchrun` does, in this process."""
    from torch.distributed.run import main

    main(["--standalone", "--nproc-per-node", "2", "-m", "charwright", *map(str, arguments)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_of(run: Path) -> str:
    return sha256(run / "model.safetensors")


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
    """Nothing is left behind: no temporary file, no folder that a replacement moved away, no lock of a run."""
    left = [path for path in place.rglob("*") if path.name.startswith(".") or path.suffix in {".tmp", ".new", ".old"}]
    # These two files of locks stay for the next process.
    left = [path for path in left if path not in (place / "cache" / "texts" / ".lock", place / "search" / ".lock")]
    # PyTorch makes these folders, and leaves them: its own caches and logs.
    left += [
        path for path in (place / "tmp").glob("*") if not path.name.startswith(("torchelastic_", "torchinductor_"))
    ]
    for entry in (place / "cache" / "texts").glob("[0-9a-f]*"):
        left += [path for path in entry.iterdir() if path.name not in {IDS, MANIFEST, UTF8, OFFSETS}]
    check(not left, f"left behind: {[str(path.relative_to(place)) for path in left]}")


def completes(ended: Ended, what: str) -> Ended:
    check(ended.code == 0, f"{what} ends with exit code {ended.code}: {ended.err[-600:]}")
    return ended


@dataclass
class Command:
    """What is killed: `prepare` fills a folder, `action` is killed, and `verify` sees that all is whole.

    `verify` completes the work with what it is given. `times` is how often in each turn; `strike` kills in an own way.
    """

    action: Callable[[Path], object]
    verify: Callable[[Path, Again], object]
    prepare: Callable[[Path], object] = lambda _: None
    times: int = 2
    slow: bool = False
    keys: bytes | None = None
    strike: Callable[[random.Random, float, Path], Strike] | None = None


class Examples:
    """Texts, runs and undisturbed results that all rounds share."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.text = place / "text.txt"
        self.text.write_text(TEXT, encoding="utf-8")
        self.vocabulary = place / "vocabulary.json"
        self.vocabulary.write_text(json.dumps(list(LETTERS.characters)))
        self.foreign = place / "foreign.weights.h5"
        self.foreign.write_bytes(weights_h5_bytes(to_keras(MODEL, weights(1))))
        self.parent = Run.save(place / "parent", MODEL, weights(), LETTERS).folder
        self.half, self.whole = place / "half", place / "whole"
        self.undisturbed(lambda: self.train(self.whole))
        self.undisturbed(lambda: self.train(self.half, "--steps", "4"))
        from_parent, resumed = place / "from", place / "resumed"
        self.undisturbed(lambda: self.continue_parent(from_parent))
        shutil.copytree(self.half, resumed)
        self.undisturbed(lambda: self.resume(resumed))
        runs = {"train": self.whole, "from": from_parent, "resume": resumed}
        self.done = {name: weights_of(run) for name, run in runs.items()}

    def undisturbed(self, action: Callable[[], object]) -> Ended:
        return completes(forked(action, self.place / "undisturbed"), "an undisturbed command")

    @cached_property
    def large(self) -> Path:
        """A text that is prepared; at its end it has so many characters that the ids before become wider."""
        path = self.place / "large.txt"
        path.write_text(TEXT * (LARGE // len(TEXT) + 1) + "".join(map(chr, range(0x4E00, 0x4E00 + 300))), "utf-8")
        return path

    @cached_property
    def large_ids(self) -> str:
        """The SHA-256 of the prepared text."""
        cache = self.place / "undisturbed" / "cache"
        self.undisturbed(lambda: charwright("prepare", self.large))
        [entry] = TextCache(cache / "texts").entries()
        found = sha256(entry.folder / IDS)
        shutil.rmtree(cache)
        return found

    @cached_property
    def large_weights(self) -> str:
        """Those of a training on the prepared text."""
        run = self.place / "large"
        self.undisturbed(lambda: self.train_large(run))
        shutil.rmtree(self.place / "undisturbed" / "cache")
        return weights_of(run)

    @cached_property
    def together(self) -> dict[str, np.ndarray]:
        """The weights of an undisturbed training by two ranks."""
        run = self.place / "together"
        self.undisturbed(lambda: torchrun("train", self.text, "--out", run, *SIZES, *OPTIONS))
        return Run.open(run).weights()

    @cached_property
    def searched(self) -> list[Recipe]:
        """The recipes of an undisturbed search."""
        return [result.recipe for result in self.search(self.place / "searched")]

    @cached_property
    def continued(self) -> set[str]:
        """What follows the texts that `pause` saves, when they are not interrupted."""
        found = set()
        for seed in "12":
            command = ["generate", self.parent, "--prompt", "the ", "--seed", seed, "--length", "60"]
            text = self.undisturbed(lambda command=command: charwright(*command)).out  # type: ignore[misc]
            found.add(text.removesuffix("\n")[-20:])
        return found

    def train(self, run: Path, *more: str) -> int:
        return charwright("train", self.text, "--out", run, *SIZES, *OPTIONS, *more)

    def train_large(self, run: Path, *more: str) -> int:
        """With a byte-level vocabulary, for which the cache has another file."""
        options = [*SIZES, *OPTIONS, "--level", "byte", "--val-fraction", "0.0001"]
        return charwright("train", self.large, "--out", run, *options, *more)

    def continue_parent(self, run: Path, *more: str) -> int:
        return charwright("train", self.text, "--from", self.parent, "--out", run, *OPTIONS, *more)

    def resume(self, run: Path) -> int:
        return charwright("train", "--resume", run, "--steps", "10", "--threads", "1", "--device", "cpu")

    def import_model(self, run: Path) -> int:
        return charwright("import", self.foreign, "--vocabulary", self.vocabulary, "--out", run, "--force")

    def pause(self, state: Path) -> int:
        """Two texts, one after the other, in one file."""
        for seed in "12":
            command = ["generate", self.parent, "--prompt", "the ", "--seed", seed, "--length", "40"]
            if code := charwright(*command, "--state-out", state):
                return code
        return 0

    def search(self, folder: Path) -> list[TrialResult]:
        with search_in(folder, lambda: DEFAULT.with_options({"minutes": 2.0}), PROTOCOL) as opened:
            list(opened.run(instant_trial, Limits(trials=6)))
            return opened.results()

    def tune(self, folder: Path) -> int:
        options = ["--trials", "2", "--minutes-per-trial", "0.003", *COMPUTE]
        return charwright("tune", self.text, "--out", folder, *options)

    def complete(self, place: Path, again: Again, train: Callable[..., int]) -> None:
        """Resume what was killed, or begin again if nothing can be resumed."""
        run = place / RUN

        def attempt() -> int:
            readable = check_readable(run)
            if readable and any(Run.open(run).log()):
                return self.resume(run)
            return train(run, *(["--force"] if readable else []))

        check_readable(run)
        again(attempt)
        completes(forked(attempt, place), "the completion")

    def finish(self, place: Path, again: Again, train: Callable[..., int], expected: str) -> None:
        """The same, with the weights of an undisturbed training."""
        self.complete(place, again, train)
        check(weights_of(place / RUN) == expected, "the weights differ from an undisturbed run")
        check_tidy(place)


def strike_ranks(chance: random.Random, usual_s: float, folder: Path) -> Strike:
    """Kill one of two ranks, or all with their torchrun, at an instant of their training or of their start."""

    def strike(process: int) -> None:
        events, seconds = chance.randrange(-3, 13), chance.random() * usual_s
        began, log = time.monotonic(), folder / RUN / "log.jsonl"
        while time.monotonic() - began < (seconds if events < 0 else 4 * usual_s):
            if events >= 0 and log.exists() and log.read_bytes().count(b"\n") >= events:
                break
            time.sleep(0.005)
        os.kill(process, signal.SIGSTOP)  # It starts no other rank meanwhile.
        ranks = children(process)
        if ranks and chance.random() < 0.6:
            _kill(chance.choice(ranks))
            os.kill(process, signal.SIGCONT)
            return
        for victim in (process, *ranks):
            _kill(victim)
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):  # Their locks end with them, a moment later.
            time.sleep(0.005)

    return strike


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def commands(of: Examples) -> dict[str, Command]:
    """The commands to break, by name."""

    def copy_of(source: Path) -> Callable[[Path], object]:
        return lambda place: shutil.copytree(source, place / RUN)

    def verify_trained(name: str, train: Callable[..., int]) -> Callable[[Path, Again], object]:
        return lambda place, again: of.finish(place, again, train, of.done[name])

    def verify_large(place: Path, again: Again) -> None:
        of.finish(place, again, of.train_large, of.large_weights)

    def one_of_two(place: Path) -> None:
        found = check_readable(place / RUN) or any(place.glob(f".{RUN}.replaced-*"))
        check(found, "the old run and the new are gone")

    def verify_forced(place: Path, again: Again) -> None:
        one_of_two(place)
        again(lambda: of.train(place / RUN, "--force"))
        one_of_two(place)
        completes(forked(lambda: of.train(place / RUN, "--force"), place), "--force")
        check(weights_of(place / RUN) == of.done["train"], "the weights differ")
        check_tidy(place)

    def verify_ranks(place: Path, again: Again) -> None:
        """Continued by one process: the same weights, within rounding."""
        of.complete(place, again, of.train)
        for name, weight in Run.open(place / RUN).weights().items():
            check(np.allclose(weight, of.together[name], atol=2e-3), f"{name} differs from an undisturbed run")
        check_tidy(place)

    def verify_import(place: Path, again: Again) -> None:
        one_of_two(place)
        again(lambda: of.import_model(place / RUN))
        completes(forked(lambda: of.import_model(place / RUN), place), "the import")
        found = Run.open(place / RUN).weights()
        check(all(np.array_equal(found[name], value) for name, value in weights(1).items()), "other weights")
        check_tidy(place)

    def exporting(to: str, ending: str, whole: Callable[[Path], object]) -> Command:
        def export(place: Path) -> int:
            return charwright("export", of.parent, "--to", to, "--out", place / f"model{ending}", "--force")

        def verify(place: Path, again: Again) -> None:
            path = place / f"model{ending}"
            if path.exists():
                whole(path)
            again(lambda: export(place))
            completes(forked(lambda: export(place), place), "the export")
            whole(path)
            check_tidy(place)

        def prepare(place: Path) -> None:
            with contextlib.redirect_stderr(None):
                export(place)

        return Command(export, verify, prepare, times=1)

    def verify_story(place: Path, _: Again) -> None:
        text = (place / "story.txt").read_text(encoding="utf-8")
        check(text.replace("x", "") == STORY, f"the text is {text[:80]!r}")
        completes(forked(lambda: write(place), place, keys=KEYS), "compose")
        check((place / "story.txt").read_text(encoding="utf-8").count("x") >= KEYS.count(b"x"), "a save is lost")
        check_tidy(place)

    def write(place: Path) -> int:
        return charwright("compose", of.parent, "--out", place / "story.txt")

    def verify_state(place: Path, again: Again) -> None:
        state = place / "state"
        command = ["generate", of.parent, "--state-in", state, "--length", "20", "--no-prompt"]
        for _ in range(2):
            if state.exists():
                text = completes(forked(lambda: charwright(*command), place), "--state-in").out
                check(text.removesuffix("\n")[-20:] in of.continued, f"another text: {text!r}")
            again(lambda: of.pause(state))
        completes(forked(lambda: of.pause(state), place), "--state-out")
        check_tidy(place)

    def verify_prepared(place: Path, again: Again) -> None:
        texts = TextCache(place / "cache" / "texts")
        check(len(list(texts.entries())) <= 1, "more than one text")
        again(lambda: charwright("prepare", of.large))
        completes(forked(lambda: charwright("prepare", of.large), place), "prepare")
        [entry] = texts.entries()
        check(sha256(entry.folder / IDS) == of.large_ids, "the prepared text differs")
        check_tidy(place)

    def verify_search(place: Path, _: Again) -> None:
        """Not killed twice: a search then proposes another trial, since this one may exceed the machine."""
        found = [result.recipe for result in of.search(place / "search")]
        check(found == of.searched, "a trial was lost, or proposed otherwise")
        check_tidy(place)

    def verify_tuned(place: Path, again: Again) -> None:
        again(lambda: of.tune(place / "search"))
        completes(forked(lambda: of.tune(place / "search"), place), "tune")
        results = json.loads((place / "search" / "results.json").read_text())
        check(len(results["trials"]) == 2 if isinstance(results, dict) else len(results) == 2, "a trial is lost")
        read_recipe(place / "search" / "best-recipe.json")
        check_tidy(place)

    def work(place: Path, worker: str) -> None:
        storage = str(place / "journal")
        with shared_search(place / worker, storage, "novel", lambda: START, PROTOCOL, patience=QUICK) as search:
            list(search.run(short_trial, Limits(trials=6)))

    def verify_shared(place: Path, _: Again) -> None:
        completes(forked(lambda: work(place, "other"), place), "another worker")
        storage = str(place / "journal")
        with shared_search(place / "other", storage, "novel", lambda: START, PROTOCOL, patience=QUICK) as search:
            results = search.results()
            check(len(results) == 6, f"{len(results)} trials instead of 6")
            check(all(result.outcome.kind == "complete" for result in results), "a trial has not been completed")

    return {
        "train": Command(lambda p: of.train(p / RUN), verify_trained("train", of.train)),
        "resume": Command(lambda p: of.resume(p / RUN), verify_trained("resume", of.train), copy_of(of.half)),
        "from": Command(lambda p: of.continue_parent(p / RUN), verify_trained("from", of.continue_parent)),
        "force": Command(lambda p: of.train(p / RUN, "--force"), verify_forced, copy_of(of.whole)),
        "large": Command(lambda p: of.train_large(p / RUN), verify_large, times=1, slow=True),
        "ranks": Command(
            lambda p: torchrun("train", of.text, "--out", p / RUN, *SIZES, *OPTIONS),
            verify_ranks, times=1, slow=True, strike=strike_ranks,
        ),
        "prepare": Command(lambda _: charwright("prepare", of.large), verify_prepared, times=1, slow=True),
        "import": Command(lambda p: of.import_model(p / RUN), verify_import, copy_of(of.parent)),
        "export numpy": exporting("numpy", ".npz", lambda path: np.load(path)["head.bias"]),
        "export keras": exporting("keras", ".weights.h5", _read_h5),
        "export html": exporting("html", ".html", lambda path: check("</html>" in path.read_text(), "half a page")),
        "export onnx": exporting("onnx", "", _read_onnx),
        "compose": Command(
            write, verify_story, lambda p: (p / "story.txt").write_text(STORY, encoding="utf-8"), keys=KEYS
        ),
        "state": Command(lambda p: of.pause(p / "state"), verify_state),
        "search": Command(lambda p: of.search(p / "search"), verify_search),
        "tune": Command(lambda p: of.tune(p / "search"), verify_tuned, times=1, slow=True),
        "shared": Command(lambda p: work(p, "one"), verify_shared, times=1, slow=True),
    }  # fmt: skip


def readings(of: Examples) -> dict[str, Command]:
    """The commands whose reads are broken: all that they read lies in the folder."""

    def prepare(place: Path) -> None:
        shutil.copytree(of.half, place / RUN)
        shutil.copy(of.text, place / "text.txt")
        shutil.copy(of.foreign, place / "foreign.weights.h5")
        shutil.copy(of.vocabulary, place / "vocabulary.json")
        (place / "story.txt").write_text(STORY, encoding="utf-8")
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(io.StringIO()):
            charwright("generate", place / RUN, "--prompt", "the ", "--length", "9", "--state-out", place / "state")

    def reading(*arguments: Callable[[Path], Path] | str) -> Command:
        def action(place: Path) -> int:
            return charwright(*(word if isinstance(word, str) else word(place) for word in arguments))

        def verify(place: Path, _: Again) -> None:
            check_readable(place / RUN)
            completes(forked(lambda: action(place), place), "the command")

        return Command(action, verify, prepare, times=1)

    def at(name: str) -> Callable[[Path], Path]:
        return lambda place: place / name

    run, text = at(RUN), at("text.txt")
    return {
        "reading train": reading("train", text, "--out", at("new"), "--force", *SIZES, *OPTIONS),
        "reading --resume": reading("train", "--resume", run, "--corpus", text, "--steps", "10", "--threads", "1"),
        "reading --from": reading("train", text, "--from", run, "--out", at("new"), "--force", *OPTIONS),
        "reading generate": reading("generate", run, "--state-in", at("state"), "--length", "5"),
        "reading evaluate": reading("evaluate", run, text),
        "reading info": reading("info", run),
        "reading inspect": reading("inspect", text, *SIZES),
        "reading export": reading("export", run, "--to", "html", "--out", at("page.html"), "--force"),
    }


KEYS = b"x\x13" * 20 + b"\x11"  # a letter and Ctrl-S, twenty times, and Ctrl-Q


def _read_h5(path: Path) -> None:
    import h5py

    with h5py.File(path) as file:
        file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)


def _read_onnx(folder: Path) -> None:
    import onnx

    for name in ("step.onnx", "generate.onnx"):
        onnx.checker.check_model(onnx.load(folder / name))
