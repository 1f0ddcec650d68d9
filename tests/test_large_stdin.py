"""Standard input of any size: kept on disk until it is prepared, with the results of input in memory."""

from __future__ import annotations

import dataclasses
import io
import shutil
import sys
from pathlib import Path

import pytest

import charwright as cw
from charwright.data.corpus import read_corpus
from charwright.data.large_texts import MappedCorpus, cache_of, open_corpus
from charwright.data.mapped_text import MappedText
from charwright.data.parts import Places
from charwright.errors import CorpusError, DecodingError
from commands import SMALL, TEXT, Terminal

INPUT = ("Über allen Gipfeln\r\nist Ruh\n" * 90).encode()

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def piped(cache: Path, data: bytes, mapped_from_bytes: int = 0) -> Places:
    return Places(cache, stdin=io.BytesIO(data), mapped_from_bytes=mapped_from_bytes)


@pytest.mark.parametrize("limit", [0, 1, 1000, len(INPUT)])
def test_long_input_is_mapped_and_is_the_text_in_memory(cache: Path, limit: int) -> None:
    expected = read_corpus("-", None, piped(cache, INPUT))
    for _ in range(2):
        found = open_corpus("-", None, piped(cache, INPUT, limit))
        assert isinstance(found, MappedCorpus)
        assert isinstance(found.unrepeatable, MappedText)
        assert found.text[:] == found.unrepeatable[:] == expected.text
        assert (found.sources, found.name, found.sha256) == (expected.sources, "stdin", expected.sha256)
    assert [path.name for path in cache_of(piped(cache, b"")).folder.iterdir() if path.is_dir()] == [found.sha256[:16]]
    short = open_corpus("-", None, piped(cache, INPUT, len(INPUT) + 1))
    assert (short.text, short.unrepeatable) == (expected.text, expected.text)


@pytest.mark.parametrize("order", [["-", "file"], ["file", "-"], ["file", "-", "file"]])
@pytest.mark.parametrize("end", ["", "\n"])
def test_input_among_files_is_found_in_the_text(tmp_path: Path, cache: Path, order: list[str], end: str) -> None:
    (tmp_path / "file").write_text(TEXT.strip() + end, encoding="utf-8")
    specs = [spec if spec == "-" else str(tmp_path / spec) for spec in order]
    data = b"typed" + end.encode()
    expected = read_corpus(specs, None, piped(cache, data))
    found = open_corpus(specs, None, piped(cache, data))
    assert isinstance(found, MappedCorpus)
    assert isinstance(found.unrepeatable, MappedText)
    assert (found.text[:], found.unrepeatable[:], found.sources) == (
        expected.text,
        expected.unrepeatable,
        expected.sources,
    )


def test_inputs_of_one_length_are_told_apart(cache: Path) -> None:
    for word in ("one.", "two."):
        assert open_corpus("-", None, piped(cache, word.encode())).text[:] == word


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", CorpusError, "standard input is empty"),
        (b"a" * 99 + b"\xff", DecodingError, r"^standard input is not utf-8: byte 99 \(0xff\) is invalid"),
    ],
)
def test_errors_are_those_of_input_in_memory_and_leave_nothing(
    cache: Path, data: bytes, error: type[CorpusError], message: str
) -> None:
    for limit in (0, 1 << 30):
        with pytest.raises(error, match=message):
            open_corpus("-", None, piped(cache, data, limit))
    assert list(cache_of(piped(cache, b"")).folder.iterdir()) == []


def test_a_run_keeps_long_input_and_resumes_without_the_cache(tmp_path: Path, cache: Path) -> None:
    options = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16}
    whole = cw.train("-", out=tmp_path / "whole", places=piped(cache, INPUT), steps=8, **options)
    run = cw.train("-", out=tmp_path / "run", places=piped(cache, INPUT), steps=4, **options)
    kept = run.folder / "corpus" / "stdin.txt"
    assert kept.read_bytes() == INPUT.replace(b"\r\n", b"\n")
    for places in (piped(cache, b""), piped(tmp_path / "other", b"")):
        copy = tmp_path / f"copy of {places.cache_folder.name}"
        shutil.copytree(run.folder, copy)
        resumed = cw.resume(copy, places=dataclasses.replace(places, stdin=None), steps=8)
        assert [event["loss"] for event in resumed.log() if event["event"] == "step"] == [
            event["loss"] for event in whole.log() if event["event"] == "step"
        ]


def test_the_terminal_names_standard_input(
    charwright: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abcdefg\n" * (8 << 20))))
    assert charwright("train", "-", "--out", tmp_path / "run", "--steps", "1", *SMALL).code == 0
    assert "from standard input\n" in charwright("cache").out
