"""Paused texts in a file: continued exactly where they stopped, or refused with one line."""

from __future__ import annotations

import errno
import os
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from charwright.arrays import fingerprint
from charwright.config import GenerationConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.errors import CharwrightError, DamagedRunError, RunError, UsageError
from charwright.generation.draft import Draft
from charwright.generation.generator import Generator
from charwright.generation.paused import paused_precision, read_paused, write_paused
from charwright.generation.session import Session
from writers import LETTERS, random_writer

MODEL = b"m" * 32


@cache
def writer(
    precision: str = "q8",
    cell: str = "gru",
    layers: int = 1,
    unit: str = "character",
    variant: str | None = None,
    ngram_bits: int = 0,
    ngram_order: int = 4,
) -> Generator:
    vocabulary = ByteVocabulary() if unit == "byte" else LETTERS
    return random_writer(
        vocabulary, precision, cell=cell, layers=layers, ngram_bits=ngram_bits, ngram_order=ngram_order, variant=variant
    )


def finish(session: Session, drafts: list[Draft]) -> list[str]:
    while session.advance():
        pass
    return [draft.pop() for draft in drafts]


def write(of: Generator, path: Path, num: int, config: GenerationConfig, *, prompt: str = "a: 中") -> list[str]:
    """Generate `num` texts and pause them."""
    session = Session(of.engine, of.vocabulary, one_by_one=True)
    drafts = [session.join(prompt, config, index) for index in range(num)]
    texts = finish(session, drafts)
    write_paused(path, of.engine, MODEL, [draft.paused() for draft in drafts])
    return texts


def go_on(of: Generator, path: Path, config: GenerationConfig) -> list[str]:
    session = Session(of.engine, of.vocabulary, one_by_one=True)
    drafts = [session.join("", config, index, start=s) for index, s in enumerate(read_paused(path, of.engine, MODEL))]
    return finish(session, drafts)


@pytest.mark.parametrize(("precision", "variant"), [("q8", None), ("f32", None), ("bf16", None), ("q8", "none")])
@pytest.mark.parametrize(
    ("cell", "layers", "bits"), [("gru", 1, 0), ("igru", 2, 0), ("lstm", 2, 0), ("rnn", 1, 0), ("lstm", 2, 10)]
)
@pytest.mark.parametrize("unit", ["character", "byte"])
@pytest.mark.parametrize("num", [1, 3])
def test_400_and_600_characters_are_1000(
    tmp_path: Path, precision: str, variant: str | None, cell: str, layers: int, bits: int, unit: str, num: int
) -> None:
    of, path = writer(precision, cell, layers, unit, variant, bits), tmp_path / "state"
    few = 10 if variant else 1
    options = {"temperature": 1.3, "repetition_penalty": 2.0}
    first = write(of, path, num, GenerationConfig(length=400 // few, seed=5, **options))
    second = go_on(of, path, GenerationConfig(length=600 // few, **options))
    whole = write(of, tmp_path / "other", num, GenerationConfig(length=1000 // few, seed=5, **options))
    assert [one + other for one, other in zip(first, second, strict=True)] == whole
    assert len(set(whole)) == num


def test_the_penalty_spans_a_pause(tmp_path: Path) -> None:
    """At temperature 0 this model repeats itself; the window of the penalty extends over the pause."""
    of, path = writer(), tmp_path / "state"
    greedy = {"temperature": 0, "repetition_penalty": 1.05}
    first = write(of, path, 1, GenerationConfig(length=1500, **greedy))
    second = go_on(of, path, GenerationConfig(length=1500, **greedy))
    assert first[0] + second[0] == write(of, path, 1, GenerationConfig(length=3000, **greedy))[0]
    without = {"temperature": 0, "repetition_penalty": 1}
    assert second != go_on(of, path, GenerationConfig(length=1500, **without))


def test_a_prompt_that_was_not_read_to_its_end(tmp_path: Path) -> None:
    of, path = writer(), tmp_path / "state"
    session = Session(of.engine, of.vocabulary)
    draft = session.join("ab\n中" * 800, GenerationConfig(length=50, seed=1))
    session.advance(5)
    write_paused(path, of.engine, MODEL, [draft.paused()])
    assert go_on(of, path, GenerationConfig(length=50)) == finish(session, [draft])


def test_the_file_is_small_however_long_the_text(tmp_path: Path) -> None:
    write(writer(), tmp_path / "state", 1, GenerationConfig(length=20_000, seed=1))
    assert (tmp_path / "state").stat().st_size < 6000
    [paused] = read_paused(tmp_path / "state", writer().engine, MODEL)
    assert paused.stream.length >= GenerationConfig(max_copy=1000).max_copy  # type: ignore[operator]


def test_a_file_may_replace_the_one_it_came_from(tmp_path: Path) -> None:
    of, path, text = writer(), tmp_path / "state", ""
    text += write(of, path, 1, GenerationConfig(length=100, seed=1))[0]
    for _ in range(3):
        session = Session(of.engine, of.vocabulary)
        [start] = read_paused(path, of.engine, MODEL)
        draft = session.join("", GenerationConfig(length=100), start=start)
        text += finish(session, [draft])[0]
        write_paused(path, of.engine, MODEL, [draft.paused()])
    assert text == write(of, path, 1, GenerationConfig(length=400, seed=1))[0]


def test_numpy_and_the_kernels_share_the_8_bit_state(tmp_path: Path) -> None:
    """The state has the same shape and meaning without the kernels."""
    path = tmp_path / "state"
    write(writer(), path, 1, GenerationConfig(length=50, seed=1))
    plain = go_on(writer(variant="none"), path, GenerationConfig(length=100))
    assert plain == go_on(writer(), path, GenerationConfig(length=100))


# Invalid files.


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    write(writer(), path, 2, GenerationConfig(length=30, seed=1))
    return path


def complaint(path: Path, of: Generator | None = None, model: bytes = MODEL) -> str:
    with pytest.raises(CharwrightError) as caught:
        read_paused(path, (of or writer()).engine, model)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_another_model_or_precision_is_refused(state: Path) -> None:
    assert "another model" in complaint(state, model=b"x" * 32)
    assert "`precision` q8" in complaint(state, writer("f32"))
    assert paused_precision(state) == "q8"


@pytest.mark.parametrize("precision", ["q8", "f32"])
@pytest.mark.parametrize("mark", [-1, len(LETTERS) + 1])
@pytest.mark.parametrize("order", [2, 4, 8])
def test_tokens_before_outside_the_vocabulary_are_refused(
    tmp_path: Path, precision: str, mark: int, order: int
) -> None:  # fmt: skip
    of, path = writer(precision, ngram_bits=10, ngram_order=order), tmp_path / "state"
    write(of, path, 1, GenerationConfig(length=30, seed=1))
    [paused] = read_paused(path, of.engine, MODEL)
    paused.stream.state[-1, 0, order - 2] = mark
    write_paused(path, of.engine, MODEL, [paused])
    assert complaint(path, of).endswith("state does not fit this model")


def test_a_models_fingerprint_covers_every_weight_and_name() -> None:
    weights = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    other = {name: array.copy() for name, array in weights.items()}
    assert fingerprint(weights) == fingerprint(dict(reversed(other.items())))
    other["b"][3] = 1e-30
    assert fingerprint(weights) != fingerprint(other)
    assert fingerprint(weights) != fingerprint({"a": weights["a"], "c": weights["b"]})


def refused(path: Path) -> bool:
    """Whether it is refused as damaged, in one line."""
    with pytest.raises((DamagedRunError, UsageError)) as caught:
        read_paused(path, writer().engine, MODEL)
    assert "\n" not in str(caught.value)
    return caught.type is DamagedRunError


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paused") / "state"
    write(writer(), path, 1, GenerationConfig(length=8, seed=1))
    return path


@given(st.data())
def test_a_truncated_or_changed_file_is_refused(kept: Path, data: st.DataObject) -> None:
    """Anywhere: a missing character, or a different number in the state, would give another text."""
    whole = kept.read_bytes()
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    other = kept.with_name("damaged")
    other.write_bytes(damaged)
    assert refused(other)


@pytest.mark.parametrize("content", [b"", b"once upon a time", b"\0" * 64, b"\x08\0\0\0\0\0\0\0{}      "])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    assert refused(path)
    with pytest.raises(DamagedRunError):
        paused_precision(path)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"head.bias": np.zeros(3, np.float32)}, path)
    assert complaint(path) == f"{path} does not contain a paused text; --state-out writes one"


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    assert complaint(tmp_path / "gone").endswith("gone is missing")


def rewritten(path: Path, **changes: np.ndarray | None) -> Path:
    """The file with other arrays, with a valid checksum."""
    arrays = {name: array for name, array in (load_file(path) | changes).items() if array is not None}
    del arrays["check"]
    save_file(arrays | {"check": np.frombuffer(fingerprint(arrays), dtype=np.uint8)}, path)
    return path


def array(*numbers: float, kind: type = np.int32) -> np.ndarray:
    return np.array(numbers, dtype=kind)


@pytest.mark.parametrize(
    "head", [array(2, 0, 1, kind=np.int64), array(1, 3, 1, kind=np.int64), array(1, -1, 1, kind=np.int64)]
)
def test_a_file_of_a_later_version(state: Path, head: np.ndarray) -> None:
    assert (
        complaint(rewritten(state, format=head))
        == f"{state} was saved by a later version of charwright; update charwright to read it"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"0.state": None},
        {"1.ids": None},
        {"1.random": None},
        {"0.unshown": None},
        {"model": None},
        {"0.state": np.zeros((1, 1, 8), np.int32)},
        {"0.state": np.zeros((1, 1, 16), np.float32)},
        {"0.ids": array(1, 2, 99)},
        {"0.ids": array(-1, 2, 3)},
        {"0.ids": array()},
        {"0.ids": np.zeros((2, 2), np.int32)},
        {"0.ids": array(1, 2, 3, kind=np.int64)},
        {"0.unshown": array(99)},
        {"0.random": array(1, 2, 3, kind=np.uint64)},
        {"0.random": array(1, 2, 3, 5000, kind=np.uint64)},
        {"0.random": array(1, 2, 3, 0, kind=np.int64)},
        {"format": array(1, 0, 3, kind=np.int64)},
        {"format": array(0, 0, 1, kind=np.int64)},
        {"format": array(1, 0, 1)},
    ],
)
def test_a_file_that_does_not_fit_the_engine(state: Path, changes: dict[str, np.ndarray | None]) -> None:
    assert refused(rewritten(state, **changes)) == ("model" not in changes)


def test_a_state_of_another_model_does_not_fit(state: Path) -> None:
    """Even with the fingerprint of this one."""
    assert "damaged" in complaint(state, writer(layers=2))
    assert "damaged" in complaint(state, writer(cell="lstm"))


# Files are written completely or not at all.


def test_a_full_disk_leaves_no_partial_file(state: Path) -> None:
    before = state.read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with patch("charwright.storage.os.fsync", side_effect=full), pytest.raises(RunError, match="No space left"):
        write(writer(), state, 2, GenerationConfig(length=60, seed=1))
    assert state.read_bytes() == before
    assert list(state.parent.iterdir()) == [state]
