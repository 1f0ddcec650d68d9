"""The run folder: atomic writes, strict reading, checkpoints, the log, and leftovers of killed processes."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from charwright import locks
from charwright.arrays import KINDS, read_arrays, read_with_metadata, write_arrays
from charwright.config import CorpusConfig, ModelConfig, Recipe, SequenceConfig
from charwright.data.corpus import Corpus, Source
from charwright.data.vocabulary import Vocabulary
from charwright.errors import (
    CharwrightError,
    DamagedRunError,
    RunError,
    RunExistsError,
    RunLockedError,
    RunNotFoundError,
    UsageError,
)
from charwright.locks import alone_in, holder, is_free
from charwright.run import Run
from charwright.run_config import Parent, RunConfig
from charwright.storage import whole_folder, write_file, write_json
from charwright.workflow.training import resume

MODEL = ModelConfig(cell="gru", layers=1, units=3, embedding_size=2)
VOCABULARY = Vocabulary("\nab中")


def ramp(shape: tuple[int, ...], phase: int = 0) -> np.ndarray:
    """Values on a nonlinear ramp, exact in float32, so that their bytes are the same on every machine."""
    steps = np.arange(np.prod(shape, dtype=int)) + phase
    return ((steps * steps + 3 * steps) % 31 / 16 - 1).reshape(shape).astype(np.float32)


def weights(phase: int = 0) -> dict[str, np.ndarray]:
    shapes = MODEL.weight_shapes(len(VOCABULARY))
    return {name: ramp(shape, phase + i) for i, (name, shape) in enumerate(shapes.items())}


def run_config() -> RunConfig:
    return RunConfig(
        recipe=Recipe(model=MODEL, sequences=SequenceConfig(batch=4, seq_length=8)),
        recipe_name="default",
        sources=(Source("file", "/texts/中.txt", "ab" * 32, 7),),
        corpus=CorpusConfig(newlines="keep"),
        characters=7,
        sha256="cd" * 32,
        validation=(Source("stdin", "corpus/stdin.txt", "ef" * 32, 9),),
        versions={"charwright": "0.1.0"},
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    created = Run.create(tmp_path / "run", run_config(), VOCABULARY)
    created.write_weights(weights())
    return created


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    changed = change(values)
    path.write_text(json.dumps(values if changed is None else changed), encoding="utf-8")


def error_of(action: Callable[[], object], kind: type[CharwrightError] = DamagedRunError) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Round trips and golden bytes.


def test_a_run_round_trip(run: Run) -> None:
    again = Run.open(run.folder)
    assert again.config == run.config
    assert again.vocabulary == VOCABULARY
    found = again.weights()
    assert list(found) == sorted(weights())
    for name, array in weights().items():
        np.testing.assert_array_equal(found[name], array)


def test_save_writes_a_model_trained_with_fit(tmp_path: Path) -> None:
    corpus = Corpus.from_text("ab中\nab")
    saved = Run.save(tmp_path / "mine", MODEL, weights(), VOCABULARY, corpus=corpus)
    again = Run.open(saved.folder)
    assert (again.model, again.config.characters, again.config.sha256) == (MODEL, 6, corpus.sha256)
    assert again.weights().keys() == weights().keys()
    assert Run.open(Run.save(tmp_path / "plain", MODEL, weights(), VOCABULARY).folder).config.sources == ()


@pytest.mark.parametrize("change", ["float64", "nan", "shape", "missing"])
def test_save_refuses_what_it_could_not_load(run: Run, change: str) -> None:
    arrays = weights()
    name = next(iter(arrays))
    if change == "missing":
        del arrays[name]
    else:
        array = arrays[name]
        changed = {"float64": array.astype(np.float64), "nan": array * np.float32("nan"), "shape": array[:1]}[change]
        arrays[name] = changed
    with pytest.raises(UsageError, match=name):
        Run.save(run.folder, MODEL, arrays, VOCABULARY, force=True)
    assert Run.open(run.folder).weights().keys() == weights().keys()


def test_the_parent_of_a_run_round_trip(tmp_path: Path) -> None:
    for step in (7, None):
        parent = Parent("runs/\udce9中", step, 9, "ef" * 32)
        created = Run.create(tmp_path / f"{step}", dataclasses.replace(run_config(), parent=parent), VOCABULARY)
        assert Run.open(created.folder).config.parent == parent


def test_the_step_of_the_weights_to_use(run: Run) -> None:
    assert run.weights_step() is None
    run.append_log({"event": "checkpoint", "step": 5, "time_s": 1.0})
    assert run.weights_step() == 5
    for step, best in ((10, True), (20, True), (30, False)):
        run.append_log({"event": "epoch", "step": step, "time_s": 1.0, "best": best})
        run.append_log({"event": "checkpoint", "step": step, "time_s": 1.0})
    assert run.weights_step() == 20


def test_a_run_lies_in_its_folder_and_in_those_around_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run.folder, target_is_directory=True)
    (tmp_path / "beside").mkdir()
    for folder in (run.folder, tmp_path, tmp_path / "link", tmp_path / "beside" / ".." / "run"):
        assert run.lies_in(folder)
    assert Run.open(tmp_path / "link").lies_in(run.folder)
    for folder in (tmp_path / "beside", tmp_path / "run-2", run.folder / "checkpoints"):
        assert not run.lies_in(folder)


def test_golden_bytes(run: Run) -> None:
    """A change of the bytes breaks existing runs.

    A new option changes config.json, which older versions then refuse; it must be deliberate.
    """
    vocabulary = '{\n "format": 1,\n "unit": "character",\n "characters": "\\nab中"\n}\n'
    assert (run.folder / "vocabulary.json").read_bytes() == vocabulary.encode()
    config = (run.folder / "config.json").read_bytes()
    assert hashlib.sha256(config).hexdigest() == GOLDEN_CONFIG_SHA256, config.decode()
    model = (run.folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(model).hexdigest() == GOLDEN_WEIGHTS_SHA256


GOLDEN_CONFIG_SHA256 = "352d3d7ca9f2f7cdfba2611467b6c8c042ca7da47e408e8b6ce146bbd57592eb"
GOLDEN_WEIGHTS_SHA256 = "6e91591ba4ee7bfb9883d1cff52add765bf95dcca1709e00dd7e0a9ac8c7cb3e"


def test_a_file_name_that_is_not_unicode_round_trip(tmp_path: Path) -> None:
    location = os.fsdecode(b"/texts/caf\xe9.txt")
    write_json(tmp_path / "x.json", {"location": location, "name": "中"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"location": location, "name": "中"}


# Atomic writes.


def failing(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "broken"), [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_leaves_the_previous_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, owner: Any, broken: str
) -> None:
    before = (run.folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(owner, broken, failing)
    message = error_of(lambda: run.write_weights(weights(phase=1)), RunError)
    monkeypatch.undo()
    assert "model.safetensors" in message
    assert "No space left" in message
    assert (run.folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "model.safetensors", "vocabulary.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no entries to flush")
@pytest.mark.parametrize(("number", "harmless"), [(errno.EINVAL, True), (errno.EACCES, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_flush_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, harmless: bool
) -> None:
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if harmless:
        write_json(tmp_path / "x.json", {"a": 1})
    else:
        assert "x.json" in error_of(lambda: write_json(tmp_path / "x.json", {"a": 1}), RunError)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": 1}


def test_the_previous_file_stays_until_the_new_one_is_on_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time of fsync the new bytes must be in another file."""
    path = run.folder / "model.safetensors"
    before, real, seen = path.read_bytes(), os.fsync, []

    def fsync(descriptor: int) -> None:
        seen.append(path.read_bytes() == before)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run.write_weights(weights(phase=1))
    assert seen == [True, False]  # the file before it is moved into place, the folder after
    assert path.read_bytes() != before


def test_a_failed_replacement_leaves_the_previous_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing)
    message = error_of(lambda: Run.create(run.folder, run_config(), VOCABULARY, force=True), RunError)
    monkeypatch.undo()
    assert "`out`" in message
    assert Run.open(run.folder).weights().keys() == weights().keys()
    assert [path.name for path in run.folder.parent.iterdir()] == ["run"]


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing)
    error_of(lambda: Run.create(tmp_path / "new", run_config(), VOCABULARY), RunError)
    assert list(tmp_path.iterdir()) == []


# Strict reading.


def test_a_missing_run_lists_those_nearby(run: Run, tmp_path: Path) -> None:
    message = error_of(lambda: Run.open(tmp_path / "rum"), RunNotFoundError)
    assert str(run.folder) in message
    assert "config.json" in error_of(lambda: Run.open(tmp_path), RunNotFoundError)
    assert "is a file" in error_of(lambda: Run.open(run.folder / "config.json"), RunNotFoundError)


def remove(key: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        del values[key]

    return change


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set a key given as a path, such as `corpus.sources.0.kind`."""
    *parents, last = path.split(".")

    def change(values: Any) -> None:
        for key in parents:
            values = values[int(key) if key.isdigit() else key]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (remove("recipe"), "recipe"),
        (remove("versions"), "versions"),
        (remove("format"), "format"),
        (put("surprise", 1), "surprise"),
        (put("recipe.surprise", 1), "surprise"),
        (put("recipe.model.surprise", 1), "surprise"),
        (put("recipe.model.units", 0), "`units`"),
        (put("recipe.model.units", "three"), "`units`"),
        (put("recipe.model.units", True), "`units`"),
        (put("recipe.model.dropout", float("nan")), "`dropout`"),
        (put("recipe.model.cell", "transformer"), "`cell`"),
        (put("recipe.model", []), "model"),
        (put("recipe", "tutorial"), "recipe"),
        (put("recipe.training.epochs", -1), "`epochs`"),
        (put("recipe_name", 7), "recipe_name"),
        (put("corpus.characters", "7"), "corpus.characters"),
        (put("corpus.sha256", None), "corpus.sha256"),
        (put("corpus.reading.encoding", 8), "`encoding`"),
        (put("corpus.sources", {}), "corpus.sources"),
        (put("corpus.sources.0.kind", 3), "corpus.sources[0].kind"),
        (put("corpus.sources.0.surprise", 3), "surprise"),
        (put("corpus.validation", [1]), "corpus.validation[0]"),
        (put("corpus.surprise", 3), "surprise"),
        (put("versions", []), "versions"),
        (put("from", None), "from"),
        (put("from", {"run": "x", "step": 1, "characters": 2}), "sha256"),
        (put("from", {"run": "x", "step": "1", "characters": 2, "sha256": ""}), "from.step"),
        (put("format", "one"), "format"),
        (put("format", 0), "format"),
        (lambda values: [], "object"),
    ],
)
def test_the_config_is_read_strictly(run: Run, change: Callable[[Any], Any], key: str) -> None:
    edit_json(run.folder / "config.json", change)
    message = error_of(lambda: Run.open(run.folder))
    assert str(run.folder / "config.json") in message
    assert key in message


def test_a_later_format_is_refused_by_its_number(run: Run) -> None:
    edit_json(run.folder / "config.json", lambda values: values.update(format=2, surprise=1))
    message = error_of(lambda: Run.open(run.folder))
    assert "config.json has format 2" in message
    assert "update" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("characters", "aba"), "'a' more than once"),
        (put("characters", 3), "characters"),
        (put("unit", "word"), "unit"),
        (put("format", 2), "later version"),
        (remove("unit"), "unit"),
        (put("surprise", 1), "keys"),
    ],
)
def test_the_vocabulary_is_read_strictly(run: Run, change: Callable[[Any], Any], expected: str) -> None:
    edit_json(run.folder / "vocabulary.json", change)
    message = error_of(lambda: Run.open(run.folder))
    assert str(run.folder / "vocabulary.json") in message
    assert expected in message


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_not_json(run: Run, name: str, data: bytes) -> None:
    (run.folder / name).write_bytes(data)
    assert str(run.folder / name) in error_of(lambda: Run.open(run.folder))


def test_a_missing_vocabulary(run: Run) -> None:
    (run.folder / "vocabulary.json").unlink()
    assert "vocabulary.json is missing" in error_of(lambda: Run.open(run.folder))


def test_a_run_without_weights_names_the_command_that_trains_it(run: Run) -> None:
    (run.folder / "model.safetensors").unlink()
    assert f"train --resume {run.folder}" in error_of(run.weights, RunError)


def changed_weights(**changes: Any) -> dict[str, np.ndarray]:
    changed = weights()
    for name, array in changes.items():
        if array is None:
            del changed[name.replace("__", ".")]
        else:
            changed[name.replace("__", ".")] = array
    return changed


@pytest.mark.parametrize(
    ("arrays", "name", "expected"),
    [
        (changed_weights(head__bias=None), "head.bias", "missing"),
        (changed_weights(head__extra=ramp((2,))), "head.extra", "unknown"),
        (changed_weights(head__bias=ramp((4,))), "head.bias", "(4,)"),
        (changed_weights(head__weight=ramp((3, 5))), "head.weight", "(3, 5)"),
        (changed_weights(head__bias=ramp((5,)).astype(np.float64)), "head.bias", "F64"),
        (changed_weights(head__bias=ramp((5,)).astype(np.float16)), "head.bias", "F16"),
        (changed_weights(head__bias=np.array([0, 1, np.nan, 0, 0], np.float32)), "head.bias", "not finite"),
        (changed_weights(head__bias=np.array([0, 1, np.inf, 0, 0], np.float32)), "head.bias", "not finite"),
    ],
)
def test_weights_are_read_strictly(run: Run, arrays: dict[str, np.ndarray], name: str, expected: str) -> None:
    (run.folder / "model.safetensors").write_bytes(save(arrays))
    message = error_of(run.weights)
    assert str(run.folder / "model.safetensors") in message
    assert repr(name) in message
    assert expected in message


def test_a_type_that_numpy_lacks_is_named(run: Run) -> None:
    header = b'{"head.bias":{"dtype":"BF16","shape":[5],"data_offsets":[0,10]}}'
    path = run.folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(10))
    message = error_of(run.weights)
    assert "'head.bias' is BF16" in message


@given(st.data())
def test_truncated_safetensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = save(weights())
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert str(path) in error_of(lambda: read_arrays(path))


@given(st.data())
def test_a_changed_bit_of_the_weights_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("bit") / "model.safetensors"
    write_arrays(path, weights())
    content = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(first, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert "its content has changed since it was written" in error_of(lambda: read_arrays(path))


def test_weights_belong_to_one_vocabulary(run: Run) -> None:
    file = run.folder / "vocabulary.json"
    whole = file.read_text(encoding="utf-8")
    file.write_text(json.dumps(json.loads(whole)) + "\r\n", encoding="utf-8")  # The same values, laid out otherwise.
    Run.open(run.folder).weights()
    file.write_text(whole.replace("ab", "ba"), encoding="utf-8")
    for use in (Run.open(run.folder).weights, Run.open(run.folder).check_resumable):
        message = error_of(use, RunError)
        assert "vocabulary.json has changed since the weights were saved; copy it from a backup" in message


def test_weights_without_a_checksum_are_read(run: Run) -> None:
    """Those of version 0.1.0."""
    (run.folder / "model.safetensors").write_bytes(save(weights()))
    assert Run.open(run.folder).weights().keys() == weights().keys()


def test_arrays_that_are_not_contiguous_are_written_correctly(tmp_path: Path) -> None:
    array = ramp((4, 6)).T[::2]
    write_arrays(tmp_path / "x.safetensors", {"x": array})
    np.testing.assert_array_equal(read_arrays(tmp_path / "x.safetensors")["x"], array)


# Checkpoints.


def write_checkpoint(run: Run, step: int, keep: int | None = 2, phase: int | None = None) -> None:
    groups = {"weights": weights(step if phase is None else phase), "optimizer": {"exp_avg.x": ramp((2,), step)}}
    run.write_checkpoint(step, groups, {"step": step}, keep)


def latest_step(run: Run) -> int | None:
    found = run.latest_checkpoint()
    if found is None:
        return None
    arrays, position = found
    np.testing.assert_array_equal(arrays["weights"]["head.bias"], weights(position["step"])["head.bias"])
    return int(position["step"])


def steps(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def test_the_newest_checkpoint_has_the_highest_step(run: Run) -> None:
    assert run.latest_checkpoint() is None
    for step in (9, 10, 100):
        write_checkpoint(run, step, keep=None)
    assert latest_step(run) == 100
    assert steps(run) == ["step-10", "step-100", "step-9"]


@pytest.mark.parametrize(("keep", "kept"), [(1, ["step-4"]), (2, ["step-3", "step-4"]), (None, None)])
def test_the_newest_checkpoints_are_kept(run: Run, keep: int | None, kept: list[str] | None) -> None:
    for step in range(1, 5):
        write_checkpoint(run, step, keep)
    assert steps(run) == (kept or [f"step-{step}" for step in range(1, 5)])


def test_the_manifest_is_written_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill at any write leaves no new checkpoint, and the previous one intact."""
    write_checkpoint(run, 1)
    real, written = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        written.append(target.name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_checkpoint(run, 2)
    assert sorted(written[:-1]) == ["optimizer.safetensors", "position.json", "weights.safetensors"]
    assert written[-1] == "manifest.json"


@pytest.mark.parametrize("write", range(1, 5))
def test_a_failure_at_any_file_leaves_the_previous_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    write_checkpoint(run, 1)
    real, count = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert "step-2" in error_of(lambda: write_checkpoint(run, 2), RunError)
    monkeypatch.undo()
    assert latest_step(run) == 1
    assert steps(run) == ["step-1"]


@pytest.mark.parametrize("stop_at", range(1, 3))
def test_saving_a_step_again_always_leaves_a_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """A kill between any two renames leaves a complete checkpoint of that step."""
    write_checkpoint(run, 1, keep=1)
    real, count = Path.rename, 0

    class Killed(BaseException):
        pass

    def rename(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == stop_at:
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Killed):
        write_checkpoint(run, 1, keep=1)
    monkeypatch.undo()
    assert latest_step(run) == 1
    write_checkpoint(run, 1, keep=1)
    assert steps(run) == ["step-1"]


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_weights(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1  # one bit, which only the hash detects
    (folder / "weights.safetensors").write_bytes(bytes(data))


def remove_optimizer(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1, "st', encoding="utf-8")


def damage_files_of_manifest(folder: Path) -> None:
    edit_json(folder / "manifest.json", put("files", []))


def drop_weights_from_manifest(folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda values: values["files"].pop("weights.safetensors") and None)


DAMAGES = [damage_weights, remove_optimizer, damage_manifest, damage_files_of_manifest, drop_weights_from_manifest]


@pytest.mark.parametrize("damage", [remove_manifest, *DAMAGES])
def test_a_damaged_checkpoint_is_skipped(run: Run, damage: Callable[[Path], None]) -> None:
    write_checkpoint(run, 1)
    write_checkpoint(run, 2)
    damage(run.folder / "checkpoints" / "step-2")
    assert latest_step(run) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_only_are_an_error(run: Run, damage: Callable[[Path], None]) -> None:
    write_checkpoint(run, 1)
    damage(run.folder / "checkpoints" / "step-1")
    assert "step-1" in error_of(run.latest_checkpoint)


def test_a_checkpoint_without_a_manifest_does_not_count(run: Run) -> None:
    write_checkpoint(run, 1)
    remove_manifest(run.folder / "checkpoints" / "step-1")
    assert run.latest_checkpoint() is None


def test_a_new_checkpoint_replaces_damaged_ones_of_later_steps(run: Run) -> None:
    """When a damaged checkpoint was skipped, the next one has a lower step than it."""
    write_checkpoint(run, 9, keep=1)
    damage_weights(run.folder / "checkpoints" / "step-9")
    write_checkpoint(run, 5, keep=1)
    assert latest_step(run) == 5
    assert steps(run) == ["step-5"]


def test_unfinished_checkpoints_are_removed(run: Run) -> None:
    write_checkpoint(run, 1)
    remove_manifest(run.folder / "checkpoints" / "step-1")
    (run.folder / "checkpoints" / "step-2.new").mkdir()
    write_checkpoint(run, 3)
    assert steps(run) == ["step-3"]


# Existing folders.


def test_an_existing_run_is_refused(run: Run) -> None:
    message = error_of(lambda: Run.create(run.folder, run_config(), VOCABULARY), RunExistsError)
    assert "--resume" in message
    assert "`force=True`" in message


def test_force_replaces_the_whole_run(run: Run) -> None:
    write_checkpoint(run, 1)
    run.append_log({"event": "start"})
    Run.create(run.folder, run_config(), Vocabulary("xyz"), force=True)
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "vocabulary.json"]
    assert Run.open(run.folder).vocabulary == Vocabulary("xyz")
    assert [path.name for path in run.folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_force_never_replaces_a_folder_that_is_not_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("{}", encoding="utf-8")
    for force in (False, True):
        message = error_of(
            lambda force=force: Run.create(tmp_path / "mine", run_config(), VOCABULARY, force=force), RunExistsError
        )
        assert "not a run" in message
    assert (tmp_path / "mine" / name).read_text(encoding="utf-8") == "{}"
    error_of(lambda: Run.create(tmp_path / "mine" / name, run_config(), VOCABULARY, force=True), RunExistsError)


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", run_config(), VOCABULARY).folder == tmp_path / "empty"


def test_force_follows_a_link(run: Run, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(run.folder, target_is_directory=True)
    Run.create(link, run_config(), Vocabulary("xyz"), force=True)
    assert link.is_symlink()
    assert Run.open(run.folder).vocabulary == Vocabulary("xyz")


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    message = error_of(lambda: Run.create(tmp_path / "file" / "run", run_config(), VOCABULARY), RunError)
    assert "`out`" in message


# The log.


def test_the_log_keeps_the_order_and_every_character(run: Run) -> None:
    events = [{"event": "sample", "step": i, "text": f"中\u2028\x85\x0c\n{i}"} for i in range(3)]
    for event in events:
        run.append_log(event)
    assert list(run.log()) == events
    assert (run.folder / "log.jsonl").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("rest", [b'{"event": "epo', b'{"event": "sample", "text": "\xe4\xb8', b"{"])
def test_a_truncated_line_affects_no_other(run: Run, rest: bytes) -> None:
    run.append_log({"event": "start", "step": 0})
    with (run.folder / "log.jsonl").open("ab") as file:
        file.write(rest)
    assert [event["event"] for event in run.log()] == ["start"]
    run.append_log({"event": "resume", "step": 0})
    assert [event["event"] for event in run.log()] == ["start", "resume"]


def test_the_last_event_of_a_step_counts(run: Run) -> None:
    def epoch(step: int, loss: float) -> dict[str, Any]:
        return {"event": "epoch", "step": step, "epoch": step // 10, "train_loss": loss, "validation_loss": None}

    for event in (epoch(10, 3.0), epoch(20, 2.0), {"event": "resume", "step": 10}, epoch(20, 1.5), epoch(30, 1.0)):
        run.append_log(event)
    for odd in ({"event": "epoch"}, {"event": "epoch", "step": "x"}, {"event": "epoch", "step": 40}):
        run.append_log(odd)
    assert [(event["step"], event["train_loss"]) for event in run.epochs()] == [(10, 3.0), (20, 1.5), (30, 1.0)]


def test_a_run_without_a_log_has_no_epochs(run: Run) -> None:
    assert run.epochs() == []


def test_texts_are_kept_unchanged(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", run_config(), VOCABULARY, texts={"corpus/stdin.txt": "中\r\nb"})
    assert (run.folder / "corpus" / "stdin.txt").read_bytes() == "中\r\nb".encode()


def test_a_line_of_the_log_that_is_nested_too_deeply_is_skipped(run: Run) -> None:
    (run.folder / "log.jsonl").write_bytes(b"[" * 100_000 + b'\n{"event": "start"}\n')
    assert list(run.log()) == [{"event": "start"}]


@pytest.mark.parametrize("name", ["9" * 5000, "../../config.json", "", "a\0b"])
def test_a_manifest_with_a_strange_name_is_refused(run: Run, name: str) -> None:
    write_checkpoint(run, 1)
    manifest = run.folder / "checkpoints" / "step-1" / "manifest.json"
    edit_json(manifest, lambda values: values | {"files": {name: {}}})
    assert len(error_of(run.latest_checkpoint)) < 400


# Leftovers of killed processes.

NO_PROCESS = 99999999  # above the largest process id


def leave(folder: Path, process: int) -> list[Path]:
    """Create what a process that is killed while it writes may leave behind."""
    (folder / "corpus").mkdir(exist_ok=True)
    replaced = folder.with_name(f".{folder.name}.replaced-{process}")
    replaced.mkdir()
    left = [
        folder / f".model.safetensors.{process}.tmp",
        folder / f".config.json.{process}.tmp",
        folder / "corpus" / f".stdin.txt.{process}.tmp",
        replaced / "config.json",
    ]
    for path in left:
        path.write_bytes(b"half")
    return left


def test_opening_a_run_for_writing_removes_leftovers(run: Run) -> None:
    left = leave(run.folder, NO_PROCESS)
    mine = [run.folder / ".notes.tmp", run.folder / "notes.99999999.tmp", run.folder.with_name(".run.replaced-mine")]
    for path in mine:
        path.write_bytes(b"mine")
    Run.open(run.folder, for_writing=True)
    assert not any(path.exists() for path in left)
    assert not left[-1].parent.exists()
    assert all(path.exists() for path in mine)
    assert Run.open(run.folder).weights().keys() == weights().keys()


def test_opening_a_run_for_reading_removes_nothing(run: Run) -> None:
    left = leave(run.folder, NO_PROCESS)
    Run.open(run.folder).weights()
    assert all(path.exists() for path in left)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no harmless signal to find a process with")
def test_temporary_files_of_running_processes_stay(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        left = leave(run.folder, running.pid)
        Run.open(run.folder, for_writing=True)
        assert all(path.exists() for path in left)
        running.communicate(b"\n")
    Run.open(run.folder, for_writing=True)
    assert not any(path.exists() for path in left)


def test_what_the_process_writes_that_trains_in_a_run_stays(run: Run) -> None:
    left = leave(run.folder, NO_PROCESS)  # It may run on another machine, whose numbers say nothing here.
    with alone_in(run.folder):
        Run.open(run.folder, for_writing=True)
        assert all(path.exists() for path in left)
    Run.open(run.folder, for_writing=True)
    assert not any(path.exists() for path in left)


def test_leftovers_beside_a_link_are_those_of_its_target(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(run.folder, target_is_directory=True)
    left = leave(run.folder, NO_PROCESS)
    Run.open(link, for_writing=True)
    assert not any(path.exists() for path in left)


def test_writing_a_file_again_removes_what_a_kill_left(tmp_path: Path) -> None:
    left = [tmp_path / f".state.{NO_PROCESS}.tmp", tmp_path / f".pages.{NO_PROCESS}.new"]
    mine = [tmp_path / ".state.tmp", tmp_path / ".state.mine.tmp", tmp_path / f".state.x.{NO_PROCESS}.tmp"]
    for path in (left[0], *mine):
        path.write_bytes(b"half")
    left[1].mkdir()
    write_json(tmp_path / "state", {})
    with whole_folder(tmp_path / "pages"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["pages", "state", *(path.name for path in mine)])


def test_a_folder_that_cannot_be_replaced_or_moved_back_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "1").write_text("old")
    rename = Path.rename

    def once(path: Path, target: Path) -> Path:
        if path.name != "pages":
            failing()
        return rename(path, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", once)
        with pytest.raises(RunError, match=r"^cannot write .*pages: No space"), whole_folder(tmp_path / "pages"):
            pass
    [kept] = tmp_path.iterdir()
    assert (kept.name, (kept / "1").read_text()) == (f".pages.{os.getpid()}.old", "old")


@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """That is not damage: the file may be whole."""
    run.append_log({"event": "end"})

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for owner, method in ((Path, "read_text"), (Path, "read_bytes")):
        monkeypatch.setattr(owner, method, refused)
    monkeypatch.setattr("safetensors.safe_open", refused)
    use = {"config.json": lambda: Run.open(run.folder), "log.jsonl": lambda: list(run.log())}
    message = error_of(use.get(name, run.weights), DamagedRunError)
    assert message == f"cannot read {run.folder / name}: Input/output error"


# Creations that a kill interrupted.


def interrupted(folder: Path) -> None:
    """What a process leaves that is killed before it writes config.json."""
    folder.mkdir()
    for name in (".lock", "vocabulary.json", f".model.safetensors.{NO_PROCESS}.tmp"):
        (folder / name).write_bytes(b"half")


def test_a_folder_whose_creation_was_interrupted_is_free(tmp_path: Path) -> None:
    interrupted(tmp_path / "run")
    Run.create(tmp_path / "run", run_config(), VOCABULARY)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "vocabulary.json"]


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_with_anything_else_is_not_free(tmp_path: Path, name: str) -> None:
    interrupted(tmp_path / "run")
    (tmp_path / "run" / name).write_text("{}", encoding="utf-8")
    before = sorted((tmp_path / "run").iterdir())
    error_of(lambda: Run.create(tmp_path / "run", run_config(), VOCABULARY), RunExistsError)
    assert sorted((tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("half", [False, True])
def test_a_run_that_was_moved_away_comes_back(run: Run, half: bool) -> None:
    """A kill between the two moves of a replacement."""
    replaced = run.folder.with_name(f".run.replaced-{NO_PROCESS}")
    new = run.folder.with_name(f".run.new-{NO_PROCESS}")
    run.folder.rename(replaced)
    new.mkdir()
    if half:  # Its removal had begun when the process was killed, and then the user removed the new run.
        (replaced / "config.json").unlink()
        error_of(lambda: Run.open(run.folder, for_writing=True), RunNotFoundError)
    else:
        assert Run.open(run.folder, for_writing=True).weights().keys() == weights().keys()
    assert [path.name for path in run.folder.parent.iterdir()] == ([] if half else ["run"])


# Locks.

PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
HOLD = "import sys; from pathlib import Path; from charwright.locks import alone_in"


@pytest.fixture
def held(run: Run) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains in the run's folder."""
    code = f"{HOLD}\nwith alone_in(Path(sys.argv[1])): print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, **PIPES) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_training_is_refused_with_the_name_of_the_first(run: Run, held: subprocess.Popen[str]) -> None:
    def lock() -> None:
        with alone_in(run.folder):
            raise AssertionError("both hold it")

    for action in (lock, lambda: resume(run), lambda: Run.create(run.folder, run_config(), VOCABULARY, force=True)):
        message = error_of(action, RunLockedError)
        assert f"process {held.pid} on {platform.node()}" in message
        assert str(run.folder) in message
    assert Run.open(run.folder).weights().keys() == weights().keys(), "readers need no lock"
    assert (run.folder / ".lock").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_a_lock_ends_with_its_process(run: Run, held: subprocess.Popen[str], killed: bool) -> None:
    held.kill() if killed else held.communicate("\n")
    held.wait()
    assert (run.folder / ".lock").exists() == killed, "only a kill leaves its file"
    with alone_in(run.folder):
        assert str(os.getpid()) in holder(run.folder)
    assert not (run.folder / ".lock").exists()


def test_two_trainings_of_one_process_exclude_each_other(run: Run) -> None:
    with alone_in(run.folder):
        message = error_of(lambda: Run.create(run.folder, run_config(), VOCABULARY, force=True), RunLockedError)
    assert f"process {os.getpid()} " in message
    Run.create(run.folder, run_config(), VOCABULARY, force=True)


@pytest.mark.skipif(os.name == "nt", reason="needs limits of processes")
def test_a_lock_on_a_full_disk_holds_without_a_name(run: Run) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # The system then refuses as if the disk were full.
    try:
        with alone_in(run.folder):
            assert (run.folder / ".lock").read_bytes() == b""
            error_of(lambda: Run.create(run.folder, run_config(), VOCABULARY, force=True), RunLockedError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_who_asks_whether_a_folder_is_free_keeps_nobody_out(run: Run) -> None:
    (run.folder / ".lock").touch()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            is_free(run.folder)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            for _ in range(300):
                with alone_in(run.folder):
                    pass
                (run.folder / ".lock").touch()
        finally:
            done.set()
        asking.result()


def test_a_lock_whose_file_was_removed_is_taken_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ends between our opening and our locking of the file."""
    real, opened = locks._lock, []

    def lock(file: BinaryIO) -> bool:
        if not opened:
            (run.folder / ".lock").unlink()
        opened.append(file)
        return real(file)

    monkeypatch.setattr(locks, "_lock", lock)
    with alone_in(run.folder):
        assert len(opened) == 2
        assert (run.folder / ".lock").exists()


def test_a_file_system_without_locks_does_not_prevent_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", failing)
    with alone_in(run.folder):
        pass


def test_a_run_that_is_replaced_while_it_is_read_is_not_mixed_with_its_successor(run: Run) -> None:
    """The vocabulary of the one must not name the rows of the other."""
    before = Run.open(run.folder)
    Run.create(run.folder, run_config(), Vocabulary("\nxyz"), weights=weights(phase=1), force=True)
    message = error_of(before.weights, RunError)
    assert "was replaced" in message
    assert Run.open(run.folder).weights().keys() == weights().keys()


READ = """
import sys
from charwright.run import Run
print("ready", flush=True)
seen = set()
sys.stdin.readline()
while len(seen) < 5:
    seen.add(float(Run.open(sys.argv[1]).weights()["head.bias"][0]))
print(len(seen), flush=True)
"""


def test_readers_see_whole_models_while_training_writes(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", READ, str(run.folder)], **PIPES) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        reader.stdin.write("go\n")
        reader.stdin.flush()
        with alone_in(run.folder):
            step = 0
            while reader.poll() is None and not select.select([reader.stdout], [], [], 0)[0]:
                step += 1
                run.write_weights(weights(phase=step))
                write_checkpoint(run, step)
        assert reader.stdout.readline() == "5\n"
        reader.stdin.close()
    assert reader.returncode == 0


def test_arrays_are_written_as_the_library_would(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    arrays = {
        "floats": random.random((3, 4), dtype=np.float32),
        "turned": random.random((4, 3), dtype=np.float32).T,
        "wide": random.random(5),
        'é "quoted"': np.arange(3),
        **{kind: np.arange(3).astype(kind) for kind in KINDS},
        "flag": np.array(True),
        "empty": np.zeros((0, 4), np.float32),
        "number": np.array(3.0, np.float32),
    }
    for some in (arrays, {}):
        write_arrays(tmp_path / "arrays.safetensors", some)
        metadata = read_with_metadata(tmp_path / "arrays.safetensors", set(KINDS.values()))[1]
        expected = save({name: np.asarray(array, order="C") for name, array in some.items()}, metadata)
        assert (tmp_path / "arrays.safetensors").read_bytes() == expected


def test_force_removes_nothing_but_a_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run.folder / "config.json").read_bytes()
    Run.create(run.folder / "fine", run_config(), VOCABULARY)
    message = error_of(lambda: Run.create(run.folder, run_config(), VOCABULARY, force=True), RunError)
    assert "fine, which is not the run's" in message
    (run.folder / "fine").rename(tmp_path / "fine")
    write_checkpoint(run, 1)
    monkeypatch.chdir(run.folder / "checkpoints")
    for place in ("..", run.folder):
        message = error_of(lambda place=place: Run.create(place, run_config(), VOCABULARY, force=True), RunError)
        assert "the current folder" in message
    assert (run.folder / "config.json").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links only for some users")
def test_a_circle_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for call in (
        lambda: Run.create(tmp_path / "loop", run_config(), VOCABULARY),
        lambda: Run.open(tmp_path / "loop", for_writing=True),
    ):
        assert "leads back to itself" in error_of(call, RunError)


def test_a_damaged_newest_checkpoint_is_reported(run: Run) -> None:
    write_checkpoint(run, 1)
    write_checkpoint(run, 2)
    newest = run.folder / "checkpoints" / "step-2"
    (newest / "weights.safetensors").write_bytes(b"X")
    lines: list[str] = []
    assert run.latest_checkpoint(lines.append) is not None
    [line] = lines
    assert newest.name in line
    assert "an older checkpoint is used" in line


def test_a_file_that_another_program_holds_for_a_while_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a virus scanner may have it open."""
    path, real, refused = tmp_path / "file", Path.replace, 0

    def held(source: Path, target: Path) -> Path:
        nonlocal refused
        refused += 1
        if refused < 3:
            raise PermissionError(13, "Access is denied")
        return real(source, target)

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(RunError, match="Access is denied"):
        write_file(path, b"1")
    monkeypatch.setattr("charwright.storage.os.name", "nt")
    monkeypatch.setattr("charwright.storage.PAUSES_S", (0.0, 0.0))
    refused = 0
    write_file(path, b"2")
    assert path.read_bytes() == b"2"
    assert refused == 3
