"""Break files at random and read them: `python tests/faults/mutations.py --count 10000 [--seed N] [--only KIND ...]`.

Each mutation is read in this process: it is either valid, or one `CharwrightError` of one line; a damaged text of the
cache may also count as absent. The count, the outcomes and the largest times and sizes are printed; more than a second
or a gigabyte is a problem. The seed and the number of a mutation give the same bytes each time.
Another kind of file is added by a function that writes it and one that reads it, in `kinds`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from charwright.arrays import fingerprint
from charwright.config import GenerationConfig, ModelConfig, Recipe, SequenceConfig, VocabularyConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.large_texts import cache_of, open_corpus
from charwright.data.parts import Places
from charwright.data.sequences import make_dataset
from charwright.data.texts import id_counts, ids_of
from charwright.data.vocabularies import make_vocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CharwrightError
from charwright.generation.generator import Generator
from charwright.generation.paused import paused_precision, read_paused, write_paused
from charwright.generation.session import Session
from charwright.interop.foreign_model import read_vocabulary
from charwright.planning.recipe_file import read_recipe, write_recipe
from charwright.planning.recipes import DEFAULT
from charwright.run import Run
from charwright.storage import write_manifest
from charwright.training.snapshot import Position, Snapshot
from charwright.tuning.search import Limits, search_in
from charwright.tuning.trial import Outcome
from charwright.workflow.checkpoints import load_checkpoint, save_checkpoint

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # Faster than a disk, and its files mean the same.
MOST_S, MOST_BYTES = 1.0, 1 << 30
MODEL = ModelConfig(cell="lstm", layers=2, units=5, embedding_size=3)
VOCABULARY = Vocabulary("\n abc中")
ODD = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**400, 0.5, -1e308, 1e400, float("nan"), "", "x", "中" * 9, "\0")
ODD_VALUES: tuple[Any, ...] = (*ODD, "\ud800", [], [[]], {}, {"": 0}, [0] * 99, "a" * 5000, [1, "x", None])
PIECES = (b"", b"\0", b"\xff\xfe", b"{", b"[" * 3000, b'"', b"1e999", b"NaN", b"-", b"9" * 5000, b"\n", b"\\u0000")


@dataclass(frozen=True)
class Kind:
    """Files that are read together: `read` raises a CharwrightError if one of them is broken."""

    name: str
    folder: Path
    read: Callable[[Path], object]


@dataclass
class Report:
    """What the readings of mutated files led to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    memory_bytes: int = 0

    broken: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.outcomes.items()))
        most = f"longest {self.longest_s:.3f} s, memory grew by {self.memory_bytes / 1e6:.0f} MB"
        return f"{self.outcomes.total():,} mutations: {counts}; {most}; {len(self.problems)} problems"


def weights() -> dict[str, np.ndarray]:
    shapes = MODEL.weight_shapes(len(VOCABULARY))
    return {
        name: np.sin(np.arange(np.prod(shape)) ** 1.5).reshape(shape).astype("f4") for name, shape in shapes.items()
    }


def make_run(folder: Path) -> None:
    run = Run.save(folder, MODEL, weights(), VOCABULARY)
    position = Position(epoch=2, step=7, best_loss=1.5, best_step=5, best_blocks=(1.0, 2.0))
    moments = {f"exp_avg.{name.replace('.', '_')}": value for name, value in weights().items()}
    save_checkpoint(run, Snapshot(position, weights(), moments, {"state.0": np.ones((2, 4, 5), "f4")}), 2)
    for step in range(3):
        figures = {"epoch": 1, "train_loss": 1.5, "validation_loss": 1.25, "bits_per_char": 2.0, "best": True}
        run.append_log({"event": "epoch", "step": step, "time_s": 1.0, **figures})
    run.append_log({"event": "checkpoint", "step": 7, "time_s": 2.0})


def read_run(folder: Path) -> None:
    run = Run.open(folder)
    run.weights()
    run.epochs()
    run.weights_step()
    load_checkpoint(run)


def generator() -> Generator:
    return Generator(MODEL, weights(), VOCABULARY)


def make_state(folder: Path) -> None:
    of = generator()
    session = Session(of.engine, of.vocabulary)
    drafts = [session.join("abc", GenerationConfig(length=9, seed=1), index) for index in range(2)]
    while session.advance():
        pass
    folder.mkdir()
    write_paused(folder / "state", of.engine, fingerprint(weights()), [draft.paused() for draft in drafts])


def reader_of_state() -> Callable[[Path], None]:
    of = generator()

    def read(folder: Path) -> None:
        paused_precision(folder / "state")
        session = Session(of.engine, of.vocabulary)
        for start in read_paused(folder / "state", of.engine, fingerprint(weights())):
            session.join("", GenerationConfig(length=3), 0, start=start)
        session.advance()

    return read


def make_recipe(folder: Path) -> None:
    folder.mkdir()
    recipe = Recipe(model=MODEL, sequences=SequenceConfig(batch=4), training=DEFAULT.training)
    write_recipe(folder / "mine.json", recipe, "a note")


CACHED = {
    "1 byte": "Über allen Gipfeln\nist Ruh, 道可道，非常道。\n" * 40,
    "2 bytes": "".join(map(chr, range(0x400, 0x800))) * 3,
    "ASCII": "to be, or not to be\n" * 80,
}
"""Texts whose ids have one or two bytes, and one that is its own UTF-8."""


def make_cache(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        text = folder.with_name(f"{name}.txt")
        text.write_text(CACHED[name], encoding="utf-8")
        places = Places(folder, mapped_from_bytes=0)
        ids_of(open_corpus(text, None, places).text, make_vocabulary("", VocabularyConfig(level="byte")))

    return make


def read_cache(name: str) -> Callable[[Path], None]:
    """As training does: the text, its vocabularies, splits, batches and counts; and as `charwright cache` does."""
    source = CACHED[name]

    def read(folder: Path) -> None:
        texts = cache_of(Places(folder, mapped_from_bytes=0))
        listed = [(entry.size_bytes, entry.manifest.name, entry.origin.sources) for entry in texts.entries()]
        if not listed:
            raise AbsentError("a damaged text is prepared again")
        for entry in texts.entries():
            texts.by_identity(entry.origin.identity)
            texts.by_sha256(entry.manifest.sha256)
            text = entry.text()
            half = text.part([(0, len(text) // 3), (len(text) // 2, len(text))])
            assert len(text.read()) == len(text) == len(source), "another length"
            for level in ("character", "byte"):
                vocabulary = make_vocabulary(half, VocabularyConfig(level=level))
                for part in (text, half):
                    ids = ids_of(part, vocabulary)
                    assert len(ids[:]) == len(ids)
                    id_counts(part, vocabulary)
                    make_dataset(ids, SequenceConfig(batch=2, seq_length=5), seed=1)

    return read


class AbsentError(CharwrightError):
    """What a damaged entry of a cache is as good as."""


def make_vocabularies(folder: Path) -> None:
    folder.mkdir()
    for name, values in (("run", VOCABULARY.to_json()), ("byte", ByteVocabulary().to_json()), ("list", ["", "a", "b"])):
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")


def read_vocabularies(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        found = read_vocabulary(path)
        vocabulary = found if isinstance(found, Vocabulary) else Vocabulary("".join(found))
        assert vocabulary.decode(vocabulary.encode("ab中")) is not None


def make_search(folder: Path) -> None:
    with search_in(folder, lambda: DEFAULT.with_options({"minutes": 2.0}), PROTOCOL) as search:
        list(search.run(instant_trial, Limits(trials=4)))


def instant_trial(recipe: Recipe, should_prune: object) -> Outcome:
    return Outcome("complete", 1 + recipe.model.dropout, 1.0, seconds=1)


def read_search(folder: Path) -> None:
    with search_in(folder, lambda: DEFAULT.with_options({"minutes": 2.0}), PROTOCOL) as search:
        list(search.run(instant_trial, Limits(trials=5)))


PROTOCOL = {"text": "abc", "--minutes-per-trial": 2.0, "--seed": 1}


def kinds(folder: Path) -> list[Kind]:
    """One intact example of each kind of files."""
    made: list[tuple[str, Callable[[Path], None], Callable[[Path], object]]] = [
        ("run", make_run, read_run),
        ("state", make_state, reader_of_state()),
        ("recipe", make_recipe, lambda place: read_recipe(place / "mine.json")),
        *((f"cache, {name}", make_cache(name), read_cache(name)) for name in CACHED),
        ("vocabulary", make_vocabularies, read_vocabularies),
        ("search", make_search, read_search),
    ]
    for name, make, _ in made:
        make(folder / name)
    return [Kind(name, folder / name, read) for name, _, read in made]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one or a few random changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        data = chance.choice((_flip, _cut, _insert, _drop, _repeat, _json, _json, _header, _header))(data, chance)
    return data


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) or 1)
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(PIECES) + data[at:]


def _drop(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.randrange(1, 40) :]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at : at + chance.randrange(1, 400)] * 2 + data[at + 1 :]


def _json(data: bytes, chance: random.Random) -> bytes:
    """An odd value somewhere in a JSON text, or in the first line of several."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(data, chance)
    return json.dumps(_odd(values, chance)).encode()


def _odd(values: Any, chance: random.Random) -> Any:
    if isinstance(values, dict) and values and chance.random() < 0.9:
        key = chance.choice(list(values))
        change = chance.random()
        if change < 0.1:
            return {name: value for name, value in values.items() if name != key}
        if change < 0.2:
            return {**values, chance.choice(("", "x", "format", key + "x")): values[key]}
        return {**values, key: _odd(values[key], chance)}
    if isinstance(values, list) and values and chance.random() < 0.9:
        at = chance.randrange(len(values))
        return [*values[:at], _odd(values[at], chance), *values[at + 1 :]]
    return chance.choice(ODD_VALUES)


def _header(data: bytes, chance: random.Random) -> bytes:
    """The length or the JSON of a safetensors header, whose length stays right."""
    length = int.from_bytes(data[:8], "little")
    if not 8 + length <= len(data):
        return _insert(data, chance)
    if chance.random() < 0.3:
        return (
            chance.choice((0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
            + data[8:]
        )
    header = _json(data[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def try_one(kind: Kind, work: Path, seed: int, number: int, report: Report) -> None:
    """Break one file of a copy, and read."""
    chance = random.Random(f"{seed} {number}")
    folder = work / kind.name
    shutil.copytree(kind.folder, folder)
    path = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    path.write_bytes(mutate(path.read_bytes(), chance))
    if path.parent.parent.name == "checkpoints" and path.name != "manifest.json" and chance.random() < 0.8:
        (path.parent / "manifest.json").unlink()  # Otherwise the hash would be all that is tested.
        write_manifest(path.parent, 7)
    if kind.name.startswith("cache") and chance.random() < 0.3:  # The bytes of the text are written again.
        for other in {*folder.rglob("utf8.*")} - {path}:
            other.unlink()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    where = f"seed {seed}, mutation {number}, {path.relative_to(work)}"
    try:
        kind.read(folder)
        outcome = "valid"
    except AbsentError:
        outcome = "absent"
    except CharwrightError as error:
        outcome = "refused"
        if "\n" in str(error) or not str(error):
            report.problems.append(f"{where}: not one line: {str(error)[:300]!r}")
    except Exception:
        outcome = "crashed"
        report.problems.append(f"{where}: {traceback.format_exc()[-900:]}")
    spent_s = time.process_time() - began
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if spent_s > MOST_S or grown > MOST_BYTES:
        report.problems.append(f"{where}: {spent_s:.1f} s, {grown:,} bytes")
    report.outcomes[f"{kind.name} {outcome}"] += 1
    report.broken[path.name] += 1
    report.longest_s, report.memory_bytes = max(report.longest_s, spent_s), report.memory_bytes + grown
    shutil.rmtree(folder)


def run(count: int, seed: int, first: int = 0, only: Sequence[str] = ()) -> Report:
    """Read this many mutations, from a number on."""
    report = Report()
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        (Path(place) / "work").mkdir()
        examples = [kind for kind in kinds(Path(place)) if not only or kind.name.partition(",")[0] in only]
        for kind in examples:
            shutil.copytree(kind.folder, Path(place) / "intact")
            kind.read(Path(place) / "intact")
            shutil.rmtree(Path(place) / "intact")
        for number in range(first, first + count):
            try_one(examples[number % len(examples)], Path(place) / "work", seed, number, report)
    if report.memory_bytes > MOST_BYTES:
        report.problems.append(f"{report.memory_bytes:,} bytes in all")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=(), help="run, state, recipe, cache, vocabulary or search")
    arguments = parser.parse_args()
    report = run(arguments.count, arguments.seed, arguments.first, arguments.only)
    print(*report.problems[:20], report, sep="\n")
    raise SystemExit(bool(report.problems))


if __name__ == "__main__":
    main()
