"""Large texts: read in pieces, kept in a cache and mapped from there, with the results of a text in memory."""

from __future__ import annotations

import bz2
import dataclasses
import errno
import gzip
import io
import itertools
import json
import lzma
import os
import random
import resource
import shutil
import sys
import threading
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charwright as cw
from charwright.config import CorpusConfig, SequenceConfig, SplitConfig, VocabularyConfig
from charwright.data import large_texts
from charwright.data.byte_streams import open_stream
from charwright.data.corpus import Corpus, read_corpus
from charwright.data.decoding import decode
from charwright.data.large_texts import AnyCorpus, MappedCorpus, cache_of, open_corpus, prepare, reopen_corpus
from charwright.data.map_writer import MapWriter
from charwright.data.mapped_ids import MappedFile, Ranges
from charwright.data.mapped_text import Alphabet, MappedText
from charwright.data.parts import Places, find_parts
from charwright.data.pieces import TextStream, composes
from charwright.data.sequences import make_dataset
from charwright.data.split import split_text
from charwright.data.text_cache import IDS, MANIFEST, Manifest
from charwright.data.text_pieces import Streamed
from charwright.data.texts import AnyIds, Text, character_counts, id_counts, ids_of
from charwright.data.vocabularies import make_vocabulary
from charwright.errors import CharwrightError, CorpusError, CorpusNotFoundError, DecodingError, MissingExtraError
from charwright.generation.novelty import CopyGuard, measure_novelty
from charwright.planning.profile import TextProfile
from charwright.processes import number_space
from charwright.run import Run
from commands import SMALL, TEXT, Terminal

OPTIONS: dict[str, Any] = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16}
MIXED = "Über allen Gipfeln\r\nist Ruh,\rin 道可道，非常道。\nallen Wipfeln 😀 spürest e\u0301 du\n" * 40

pytestmark = pytest.mark.usefixtures("one_thread")


class Bar:
    """A progress bar that remembers."""

    def __init__(self) -> None:
        self.total, self.shown, self.closed = 0, 0, 0

    def update(self, size: int) -> None:
        self.shown += size

    def reset(self) -> None:
        self.shown = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Every text is large."""
    return Places(tmp_path / "cache", mapped_from_bytes=0, progress=Bar())


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.txt"
    path.write_bytes(MIXED.encode("utf-8"))
    return path


def mapped(text: str, folder: Path) -> MappedText:
    """A text on disk."""
    path = folder / "text.txt"
    path.write_bytes(text.encode("utf-8"))
    corpus = open_corpus(path, CorpusConfig(newlines="keep"), Places(folder / "cache", mapped_from_bytes=0))
    assert isinstance(corpus, MappedCorpus)
    return corpus.text


def in_pieces(data: bytes, config: CorpusConfig, piece_bytes: int) -> str:
    """Decode data in pieces of a size, and see that the UTF-8 of each is its text."""
    stream = TextStream(io.BytesIO(data), "x.txt", lambda: io.BytesIO(data), piece_bytes)
    parts = []
    for piece in stream.pieces(config):
        text = piece.utf8.decode("utf-8")
        assert piece.text == (None if text.isascii() and piece.text is None else text)
        assert piece.utf8
        parts.append(text)
    return "".join(parts)


def outcome(call: Any) -> str:
    try:
        return "text: " + call()
    except DecodingError as error:
        return "error: " + str(error)


# Decoding in pieces.

pieces_of_text = st.sampled_from(
    [
        *["\r", "\n", "\r\n", "a", "e", "\u0301", "\u0327", "\u0344", "é", "道", "😀", "\ufeff", "ﬁ", "¨"],
        *["ᄀ", "ᅡ", "ᆨ", "가", "ﾡ", "ￂ", "ｶ", "ﾞ", "\u09c7", "\u09be", "\u0b92", "\u0bd7"],
    ]
)
reading = st.builds(
    CorpusConfig,
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-7", "utf-8-sig"]),
    newlines=st.sampled_from(["lf", "keep"]),
    normalize=st.sampled_from(["none", "nfc", "nfd", "nfkc", "nfkd"]),
    errors=st.sampled_from(["strict", "replace"]),
)


@given(st.lists(pieces_of_text, max_size=30).map("".join), reading, st.integers(1, 9))
def test_pieces_decode_as_the_whole(text: str, config: CorpusConfig, piece_bytes: int) -> None:
    data = text.encode(config.encoding)
    assert in_pieces(data, config, piece_bytes) == decode(data, config, "x.txt")


def test_a_text_is_divided_only_before_what_never_composes() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    pairs = [unicodedata.decomposition(character).split() for character in characters]
    second = {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and not pair[0].startswith("<")}
    assert all(map(composes, second | set("ᅡᆨﾞ")))
    assert all(composes(character) for character in characters if unicodedata.combining(character))
    assert not any(map(composes, "a é道가ᄀﬁｶ"))


@pytest.mark.parametrize("form", ["nfc", "nfkc"])
def test_a_text_without_ascii_is_normalized_in_pieces(form: str) -> None:
    data = "道可道非常道가각か\u3099".encode() * 1_000
    stream = TextStream(io.BytesIO(data), "x.txt", lambda: io.BytesIO(data), 1_000)
    pieces = [piece.utf8.decode() for piece in stream.pieces(CorpusConfig(normalize=form))]
    assert max(map(len, pieces)) < 500
    assert "".join(pieces) == unicodedata.normalize(form.upper(), data.decode())


@given(
    st.lists(
        st.sampled_from([b"a", b"\r", b"\xe9", b"\xe9\x81\x93", b"\0", b"\xed\xa0\x80", b"+2AA-", b"\xf0\x9f"]),
        max_size=12,
    ).map(b"".join),
    st.sampled_from(["utf-8", "utf-7", "gb18030", "utf-16", "ascii", "cp1252", "no-such-encoding"]),
    st.sampled_from(["none", "nfc"]),
    st.sampled_from(["strict", "replace"]),
    st.integers(1, 9),
)
def test_errors_in_pieces_are_those_of_the_whole(
    data: bytes, encoding: str, normalize: str, errors: str, piece_bytes: int
) -> None:
    config = CorpusConfig(encoding=encoding, normalize=normalize, errors=errors)
    whole = outcome(lambda: decode(data, config, "x.txt"))
    assert outcome(lambda: in_pieces(data, config, piece_bytes)) == whole


def test_the_position_of_an_error_beyond_what_is_looked_at_again() -> None:
    data = b"a\n" * 40 + b"\xff"
    stream = TextStream(io.BytesIO(data), "x.txt", lambda: io.BytesIO(data), 7, sampled_bytes=20)
    with pytest.raises(DecodingError, match=r"^x.txt is not utf-8: byte 80 \(0xff\) is invalid; try `encoding`"):
        list(stream.pieces(CorpusConfig()))


def test_a_damaged_file_of_a_folder_is_read_where_errors_are_replaced(tmp_path: Path, places: Places) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.log").write_bytes(b"a line of a log\n" * 20 + b"\0\n")
    (folder / "b.png").write_bytes(b"\x89PNG\0\0\0\r")
    config = CorpusConfig(errors="replace")
    for there in (places, dataclasses.replace(places, mapped_from_bytes=1 << 20)):
        corpus = open_corpus(folder, config, there)
        assert len(corpus.text) == 322
        assert [note.partition(" under")[0] for note in corpus.notes] == [
            "skipped 1 binary file",
            "1 U+FFFD in the text: what is not utf-8 is replaced by it",
        ]
    streamed = Streamed.find([str(folder)], config, places)
    assert len("".join(text for _, text in streamed.pieces())) == 322


def test_the_name_of_a_prepared_text_stays_when_it_is_found_in_many_ways(tmp_path: Path, places: Places) -> None:
    for number in range(20):
        path = tmp_path / f"t{number}.txt"
        path.write_text("the same text\n", encoding="utf-8")
        open_corpus(path, CorpusConfig(), places)
    [entry] = cache_of(places).entries()
    assert entry.manifest.name == "t0"


def test_what_is_no_text_is_replaced_and_counted(tmp_path: Path, places: Places) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"one\xff two\0\r\n\xe9\x81 three\n")
    config = CorpusConfig(errors="replace")
    for there in (places, dataclasses.replace(places, mapped_from_bytes=1 << 20)):
        corpus = open_corpus(path, config, there)
        assert corpus.text[:] == "one\ufffd two\ufffd\n\ufffd three\n"
        assert corpus.notes == ("3 U+FFFD in the text: what is not utf-8 is replaced by it",)
        assert reopen_corpus(corpus.sources, corpus.sha256, config, there).sha256 == corpus.sha256
    path.write_bytes(b"one\xff two\n")
    with pytest.raises(DecodingError, match="or read on with `errors` replace"):
        open_corpus(path, CorpusConfig(), places)


@pytest.mark.parametrize(
    ("suffix", "pack", "package"),
    [
        (".gz", gzip.compress, "isal"),
        (".gz", gzip.compress, None),
        (".bz2", bz2.compress, None),
        (".xz", lzma.compress, None),
    ],
)
def test_compressed_files_of_several_members(
    suffix: str, pack: Any, package: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        pytest.importorskip(package)
    else:
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    texts = [random.Random(seed).randbytes(3000 * seed) for seed in range(4)]
    data = b"".join(map(pack, texts)) + b"\0" * (4 if suffix == ".gz" else 0)
    for size in (1, 7, 1000, 1 << 20):
        stream, parts = open_stream(lambda: io.BytesIO(data), suffix, "x"), []
        while part := stream.read(size if size > 1 else 100):
            parts.append(part)
        assert b"".join(parts) == b"".join(texts)
    for cut in (10, len(pack(texts[3])) // 2, len(pack(texts[3])) - 1):
        with pytest.raises(DecodingError, match=r"^cannot decompress x: "):
            open_stream(lambda cut=cut: io.BytesIO(pack(texts[3])[:cut]), suffix, "x").read()
    damaged = bytearray(pack(texts[3]))
    damaged[-5] ^= 1  # in the checksum
    with pytest.raises(DecodingError, match=r"^cannot decompress x: "):
        open_stream(lambda: io.BytesIO(damaged), suffix, "x").read()


def test_isa_l_reads_gzip_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    made: list[Any] = []
    monkeypatch.setattr(isal_zlib, "decompressobj", lambda bits: made.append(bits) or zlib.decompressobj(bits))
    assert open_stream(lambda: io.BytesIO(gzip.compress(b"text")), ".gz", "x").read() == b"text"
    assert made


def test_zstandard(tmp_path: Path, places: Places) -> None:
    zstd = pytest.importorskip("backports.zstd")
    path = tmp_path / "novel.txt.zst"
    path.write_bytes(zstd.compress(MIXED.encode()))
    assert open_corpus(path, None, places).text[:] == read_corpus(path, None, places).text
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DecodingError, match=r"^cannot decompress .*novel.txt.zst: "):
        open_corpus(path, None, places)


def test_without_a_package_zstandard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=r"reading .zst needs .* 'charwright\[zstd\]'"):
        open_stream(io.BytesIO, ".zst", "x")


# The map.


@given(st.lists(st.text(st.sampled_from("ab\né道😀") | st.characters(codec="utf-8"), min_size=1), max_size=8))
def test_the_map_holds_the_text_and_its_counts(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    writer = MapWriter(tmp_path_factory.mktemp("map") / "ids.bin")
    for part in parts:
        ids = writer.ids(part.encode() if part.isascii() else part)
        writer.write(ids)
        writer.count(ids)
    writer.close()
    text = "".join(parts)
    assert writer.characters == "".join(dict.fromkeys(text))
    assert dict(zip(writer.characters, writer.counts, strict=True)) == Counter(text)
    if text:
        file = MappedFile(writer.path, writer.width, writer.length)
        assert Alphabet(writer.characters, writer.counts).decode(file.read(0, len(text))) == text


@pytest.mark.parametrize(("size", "width"), [(255, 1), (256, 2), (65_535, 2), (65_536, 4)])
def test_ids_become_wider_with_the_alphabet(tmp_path: Path, size: int, width: int) -> None:
    text = "".join(chr(code) for code in range(size + 2048) if not 0xD800 <= code <= 0xDFFF)[:size]
    writer = MapWriter(tmp_path / "ids.bin")
    for part in (text[:100], text[:200], text[:300], text, "a" * 300_000):
        ids = writer.ids(part)
        writer.write(ids)
        writer.count(ids)
    writer.close()
    whole = text[:100] + text[:200] + text[:300] + text + "a" * 300_000
    assert (writer.width, writer.length, writer.characters) == (width, len(whole), text)
    assert writer.path.stat().st_size == width * len(whole)
    assert list(tmp_path.iterdir()) == [writer.path]
    read = Alphabet(writer.characters, writer.counts).decode(
        MappedFile(writer.path, width, len(whole)).read(0, len(whole))
    )
    assert read == whole
    assert dict(zip(writer.characters, writer.counts, strict=True)) == Counter(whole)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_ranges_are_joined(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    ranges, at = [], 0
    for gap, length in sizes:
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    naive = [i for begin, end in ranges for i in range(begin, end)]
    joined = Ranges(ranges)
    assert len(joined) == len(naive)
    if naive:
        assert joined.positions(np.arange(len(naive))).tolist() == naive
    begin = data.draw(st.integers(0, len(naive)))
    end = data.draw(st.integers(begin, len(naive)))
    assert [i for first, last in joined.within(begin, end) for i in range(first, last)] == naive[begin:end]


# The same results in memory and on disk.

TEXTS = {
    "ascii": TEXT * 3,
    "mixed": MIXED,
    "wide": "".join(chr(0x4E00 + (i * i) % 700) for i in range(9000)) + "end",
}


@pytest.mark.parametrize("level", ["character", "byte"])
@pytest.mark.parametrize("split", [SplitConfig(), SplitConfig(val_split="tail"), SplitConfig(val_fraction=0.0)])
@pytest.mark.parametrize("name", TEXTS)
def test_everything_that_training_needs_is_the_same(tmp_path: Path, name: str, split: SplitConfig, level: str) -> None:
    there, here = mapped(TEXTS[name], tmp_path), TEXTS[name]
    config = VocabularyConfig(level=level, min_count=2)
    vocabulary = make_vocabulary(there, config)
    assert vocabulary == make_vocabulary(here, config)
    assert make_vocabulary("xyz", config).grown(there, config) == make_vocabulary("xyz", config).grown(here, config)
    (training, held_out), (expected, expected_held_out) = split_text(there, split), split_text(here, split)
    assert isinstance(training, MappedText)
    assert (training[:], held_out) == (expected, expected_held_out)
    assert (training[5:-7:13], training[3:50], len(training)) == (expected[5:-7:13], expected[3:50], len(expected))
    assert TextProfile.of(training, vocabulary) == TextProfile.of(expected, vocabulary)
    assert (id_counts(training, vocabulary) == id_counts(expected, vocabulary)).all()
    assert character_counts(training) == character_counts(expected)
    ids, wanted = ids_of(training, vocabulary), ids_of(expected, vocabulary)
    assert len(ids) == len(wanted)
    assert (ids[:] == wanted).all()
    assert ids[10:20].dtype == wanted.dtype
    for order in ("streams", "windows"):
        for pair, same in zip(*(batches(some, order) for some in (ids, wanted)), strict=True):
            assert (pair[0] == same[0]).all()
            assert (pair[1] == same[1]).all()


def batches(ids: AnyIds, order: str) -> Any:
    return list(make_dataset(ids, SequenceConfig(order=order, batch=5, seq_length=11), seed=3).batches(2))


def test_novelty_and_the_limit_on_copying(tmp_path: Path) -> None:
    there, here = mapped(MIXED, tmp_path), MIXED
    vocabulary = make_vocabulary(here, VocabularyConfig())
    written = MIXED[100:170] + "xx" + MIXED[995:1040] + "道"
    for searched in (1, 97, 10_000):
        assert measure_novelty(there, written, 8, searched=searched) == measure_novelty(here, written, 8)
    guards = [CopyGuard(ids_of(text, vocabulary), len(vocabulary), 4) for text in (there, here)]
    recent = vocabulary.encode(MIXED[50:60])
    assert (guards[0].forbidden(recent) == guards[1].forbidden(recent)).all()


# Corpora.


def same(there: AnyCorpus, here: Corpus) -> None:
    """See that a mapped corpus is the one in memory."""
    assert isinstance(there, MappedCorpus)
    assert there.text[:] == here.text
    assert (there.sources, there.name, there.sha256) == (here.sources, here.name, here.sha256)
    assert (there.notes, there.unrepeatable) == (here.notes, here.unrepeatable)


def test_files_folders_globs_and_names(tmp_path: Path, places: Places, mixed: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"no newline")
    (folder / "b.txt").write_bytes(b"")
    (folder / "c.bin").write_bytes(b"binary\0")
    (folder / "d.txt").write_bytes("\ufeffwith a mark".encode("utf-16"))
    (folder / "inner" / "e.txt.gz").write_bytes(gzip.compress("zipped é".encode()))
    (folder / ".hidden").write_bytes(b"hidden")
    specs: list[Any] = [mixed, folder / "a.txt", folder / "b.txt", mixed, str(folder / "**" / "*.gz"), "python-docs"]
    same(open_corpus(specs, None, places), read_corpus(specs, None, places))
    (folder / "d.txt").unlink()
    for spec in ([folder], [folder, mixed], [str(folder / "?.txt"), folder]):
        same(open_corpus(spec, None, places), read_corpus(spec, None, places))
    assert open_corpus(folder, None, places).notes == (f"skipped 1 binary file under {folder}",)


@pytest.mark.parametrize(
    "config", [CorpusConfig(encoding="utf-16"), CorpusConfig(glob="*.txt"), CorpusConfig(normalize="nfd")]
)
def test_reading_options(tmp_path: Path, places: Places, config: CorpusConfig) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_bytes(MIXED.encode(config.encoding))
    (tmp_path / "folder" / "b.txt").write_bytes(MIXED.encode(config.encoding))
    same(open_corpus(tmp_path / "folder", config, places), read_corpus(tmp_path / "folder", config, places))


@pytest.mark.parametrize(("data", "message"), [(b"", "is empty"), (b"\xef\xbb\xbf", "is empty"), (b"a", "only one")])
def test_texts_that_are_too_short(tmp_path: Path, places: Places, data: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=message):
        open_corpus(tmp_path / "x.txt", None, places)
    assert not any(cache_of(places).folder.iterdir())


def test_folders_without_texts(tmp_path: Path, places: Places) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"\0")
    for glob in ("*", "*.txt"):
        with pytest.raises(CorpusError, match="there is no text file under"):
            open_corpus(tmp_path / "folder", CorpusConfig(glob=glob), places)


def test_small_texts_and_undivided_encodings_stay_in_memory(tmp_path: Path, mixed: Path) -> None:
    large = mixed.stat().st_size
    assert isinstance(open_corpus(mixed, None, Places(tmp_path / "c", mapped_from_bytes=large + 1)), Corpus)
    assert not (tmp_path / "c").exists()
    assert isinstance(open_corpus(mixed, None, Places(tmp_path / "c", mapped_from_bytes=large)), MappedCorpus)
    places = Places(tmp_path / "c", mapped_from_bytes=0)
    (tmp_path / "p").write_bytes("bücher und mehr".encode("punycode"))
    assert open_corpus(tmp_path / "p", CorpusConfig(encoding="punycode"), places).text == "bücher und mehr"


def test_other_file_systems(places: Places) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://texts/novel.txt.gz", "wb") as file:
        file.write(gzip.compress(MIXED.encode()))
    for _ in range(2):
        there = open_corpus("memory://texts/novel.txt.gz", None, places)
        same(there, read_corpus("memory://texts/novel.txt.gz", None, places))
    assert there.sources[0].location == "memory://texts/novel.txt.gz"
    with pytest.raises(CorpusNotFoundError, match=r"^there is no file memory://texts/other.txt"):
        open_corpus("memory://texts/other.txt", None, places)
    with pytest.raises(CorpusError, match=r"^cannot read nothing://x"):
        open_corpus("nothing://x", None, places)


def test_without_fsspec_other_file_systems_are_one_line(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"charwright\[fsspec\]"):
        open_corpus("s3://bucket/novel.txt", None, places)


# Training.


def train(places: Places, text: Path, out: Path, **options: Any) -> Run:
    return cw.train(text, out=out, places=places, **{"steps": 30, **OPTIONS, **options})


def after(steps: int) -> Callable[[], str | None]:
    """Stops a training after some steps."""
    count = itertools.count(1)
    return lambda: "SIGTERM" if next(count) == steps else None


def written(run: Run) -> tuple[bytes, bytes, bytes]:
    names = ("model.safetensors", "config.json", "vocabulary.json")
    first, second, third = ((run.folder / name).read_bytes() for name in names)
    return first, second, third


@pytest.mark.parametrize(
    "options", [{}, {"order": "windows"}, {"level": "byte"}, {"val_fraction": 0.0, "min_count": 60}], ids=str
)
def test_training_gives_the_same_bits(tmp_path: Path, places: Places, mixed: Path, options: dict[str, Any]) -> None:
    small = dataclasses.replace(places, mapped_from_bytes=1 << 30)
    assert written(train(places, mixed, tmp_path / "there", **options)) == written(
        train(small, mixed, tmp_path / "here", **options)
    )
    assert len(list(cache_of(places).entries())) == 1


@pytest.mark.parametrize("level", ["character", "byte"])
def test_a_run_resumes_with_the_text_in_the_cache_alone(
    tmp_path: Path, places: Places, mixed: Path, level: str
) -> None:
    whole = train(places, mixed, tmp_path / "whole", level=level)
    half = train(places, mixed, tmp_path / "half", level=level, should_stop=after(15))
    mixed.unlink()
    resumed = cw.resume(half, places=places)
    assert written(resumed)[0] == written(whole)[0]


def test_without_the_cache_a_resume_reads_the_source_again(tmp_path: Path, places: Places, mixed: Path) -> None:
    run = train(places, mixed, tmp_path / "run", should_stop=after(15))
    cache_of(places).clear()
    assert written(cw.resume(run, places=places))[0] == written(train(places, mixed, tmp_path / "whole"))[0]
    cache_of(places).clear()
    mixed.write_text(MIXED.replace("Ruh", "Rum"), encoding="utf-8")
    with pytest.raises(CorpusError, match="has changed since this run started"):
        cw.resume(run, steps=40, places=places)
    mixed.unlink()
    with pytest.raises(CorpusError, match="is gone; give its new location"):
        cw.resume(run, steps=40, places=dataclasses.replace(places, cache_folder=tmp_path / "empty"))


def test_a_run_continues_from_another_on_a_large_text(tmp_path: Path, places: Places, mixed: Path) -> None:
    (tmp_path / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    parent = train(places, tmp_path / "hamlet.txt", tmp_path / "parent").folder
    small = dataclasses.replace(places, mapped_from_bytes=1 << 30)
    runs = [
        cw.train(mixed, parent=parent, out=tmp_path / name, steps=20, places=there)
        for name, there in (("there", places), ("here", small))
    ]
    assert written(runs[0]) == written(runs[1])
    assert len(runs[0].vocabulary) > len(Run.open(parent).vocabulary)


# The cache.


def test_a_second_start_reads_nothing(places: Places, mixed: Path) -> None:
    bar = places.progress
    first = open_corpus(mixed, None, places)
    assert (bar.total, bar.shown, bar.closed) == (mixed.stat().st_size, mixed.stat().st_size, 1)
    second = open_corpus(mixed, None, places)
    assert bar.closed == 1
    assert (first.sha256, first.text[:], first.sources) == (second.sha256, second.text[:], second.sources)


@pytest.mark.parametrize("change", ["time", "size", "encoding", "newlines"])
def test_a_change_is_noticed(places: Places, mixed: Path, change: str) -> None:
    open_corpus(mixed, None, places)
    config = CorpusConfig()
    if change == "time":
        mixed.write_text(MIXED.replace("Ruh", "Rum"), encoding="utf-8", newline="")
        os.utime(mixed, ns=(1, 1))
    elif change == "size":
        mixed.write_text(MIXED + "more", encoding="utf-8")
    else:
        config = CorpusConfig(**{change: {"encoding": "latin-1", "newlines": "keep"}[change]})
    same(open_corpus(mixed, config, places), read_corpus(mixed, config, places))
    assert len(list(cache_of(places).entries())) == 2


def test_the_same_text_from_another_place_is_kept_once(tmp_path: Path, places: Places, mixed: Path) -> None:
    (tmp_path / "copy.txt.gz").write_bytes(gzip.compress(mixed.read_bytes()))
    for _ in range(2):
        for path in (mixed, tmp_path / "copy.txt.gz"):
            same(open_corpus(path, None, places), read_corpus(path, None, places))
    [entry] = cache_of(places).entries()
    assert [origin.name for origin in entry.manifest.origins] == ["mixed", "copy"]


def test_what_a_killed_preparation_left_is_removed_by_the_next(places: Places, mixed: Path) -> None:
    folder = cache_of(places).folder
    here = number_space()
    running = f".{os.getppid()}-{here}12345678.new"  # Another process is still preparing it.
    elsewhere = [f".999999999-0a0a0a0a{digits}.new" for digits in ("12345678", "87654321")]
    for name in (f".999999999-{here}12345678.new", f".{os.getpid()}-{here}12345678.new", running, *elsewhere):
        (folder / name).mkdir(parents=True)
        (folder / name / IDS).write_bytes(b"half")
    for path in (folder / elsewhere[1], folder / elsewhere[1] / IDS):
        os.utime(path, (0, time.time() - 100_000))
    open_corpus(mixed, None, places)
    assert {path.name for path in folder.glob(".*.new")} == {running, elsewhere[0]}


def test_a_text_is_moved_without_an_open_file(places: Places, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to move a folder that has one, and a file that is open."""
    rename, moved = Path.rename, []

    def careful(self: Path, target: Path) -> Path:
        opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]
        assert not [path for path in opened if path.is_relative_to(self.resolve())]
        moved.append(target)
        return rename(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list the open files of a process")
    monkeypatch.setattr(Path, "rename", careful)
    open_corpus(mixed, None, places)
    assert moved


def test_what_was_left_within_a_text_is_removed_too(places: Places, mixed: Path) -> None:
    """By a start that finds the text prepared, and before the bytes of the text are written again."""
    vocabulary = make_vocabulary("", VocabularyConfig(level="byte"))
    text = open_corpus(mixed, None, places).text
    [entry] = cache_of(places).entries()
    for use in (lambda: open_corpus(mixed, None, places), lambda: ids_of(text, vocabulary)):
        for name in (".utf8.bin.999999999-ab12.tmp", ".manifest.json.999999999.tmp"):
            (entry.folder / name).write_bytes(b"half")
        running = entry.folder / f".utf8.bin.{os.getppid()}-ab12.tmp"
        running.write_bytes(b"half")
        use()
        assert list(entry.folder.glob(".*")) == [running]  # Another process is still writing it.
        running.unlink()


def test_an_error_leaves_nothing(tmp_path: Path, places: Places) -> None:
    (tmp_path / "x.txt").write_bytes(b"valid\n" * 50_000 + b"\xff")
    with pytest.raises(DecodingError, match="byte 300,000 "):
        open_corpus(tmp_path / "x.txt", None, places)
    assert list(cache_of(places).folder.iterdir()) == []
    assert places.progress.closed == 1


def test_a_text_that_changes_while_it_is_read_is_refused(places: Places, mixed: Path) -> None:
    parts = find_parts([str(mixed)], CorpusConfig(), places, [])
    os.utime(mixed, ns=(1, 1))
    with pytest.raises(CorpusError, match="changed while it was read; try again"):
        prepare(parts, "mixed", places)


def test_two_at_a_time_do_not_harm_each_other(places: Places, mixed: Path) -> None:
    found: list[str] = []
    there = dataclasses.replace(places, progress=None)

    def work() -> None:
        corpus = open_corpus(mixed, None, there)
        found.append(corpus.text[:])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [read_corpus(mixed, None, places).text] * 6
    assert len([path for path in cache_of(places).folder.iterdir() if path.name != ".lock"]) == 1


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_is_one_line_and_leaves_the_cache_whole(
    tmp_path: Path, places: Places, mixed: Path, limit: int
) -> None:
    (tmp_path / "other.txt").write_text(TEXT, encoding="utf-8")
    open_corpus(tmp_path / "other.txt", None, places)
    before = sorted(cache_of(places).folder.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # The system then refuses as if the disk were full.
    try:
        with pytest.raises(CorpusError, match=r"^cannot write in .*: .*; free some space, .*$") as caught:
            open_corpus(mixed, None, places)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert sorted(cache_of(places).folder.rglob("*")) == before
    same(open_corpus(mixed, None, places), read_corpus(mixed, None, places))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fails_on_the_way_is_one_line(
    tmp_path: Path, places: Places, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The text is flushed on the way, by a thread, and at the end."""
    (tmp_path / "x.txt").write_bytes(b"0123456789\n" * 1000)
    monkeypatch.setattr(large_texts, "FLUSHED_BYTES", 1000)
    calls, flush = itertools.count(1), os.fsync

    def fail(descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    parts = find_parts([str(tmp_path / "x.txt")], CorpusConfig(), places, [])
    with pytest.raises(CorpusError, match=r"^cannot write in .*: Input/output error; free some space, .*$"):
        prepare(parts, "x", places, piece_bytes=500)
    assert list(cache_of(places).folder.iterdir()) == []


def test_the_bytes_of_a_text_are_written_once_and_whole(places: Places, mixed: Path) -> None:
    vocabulary = make_vocabulary("", VocabularyConfig(level="byte"))
    for cut in (None, "utf8.bin", "utf8.json"):
        if cut:
            path = next(cache_of(places).entries()).folder / cut
            path.write_bytes(path.read_bytes()[:-3])
        text: Text = open_corpus(mixed, None, places).text
        assert (ids_of(text, vocabulary)[:] == vocabulary.encode(text[:])).all()
    folder = next(cache_of(places).entries()).folder
    assert sorted(path.name for path in folder.iterdir()) == ["ids.bin", "manifest.json", "utf8.bin", "utf8.json"]


def test_a_damaged_text_is_prepared_again(places: Places, mixed: Path) -> None:
    open_corpus(mixed, None, places)
    [entry] = cache_of(places).entries()
    manifest = (entry.folder / MANIFEST).read_bytes()
    chance = random.Random(1)
    for _ in range(200):
        data = bytearray(manifest)
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
        (entry.folder / MANIFEST).write_bytes(data)
        assert len(list(cache_of(places).entries())) <= 1
    (entry.folder / MANIFEST).write_bytes(manifest[:-20])
    same(open_corpus(mixed, None, places), read_corpus(mixed, None, places))
    (entry.folder / IDS).write_bytes((entry.folder / IDS).read_bytes()[:-1])
    same(open_corpus(mixed, None, places), read_corpus(mixed, None, places))


def test_ids_that_no_character_has_are_an_error(places: Places, mixed: Path) -> None:
    open_corpus(mixed, None, places)
    [entry] = cache_of(places).entries()
    (entry.folder / IDS).write_bytes(b"\xfe" * entry.manifest.characters)
    text = open_corpus(mixed, None, places).text
    assert isinstance(text, MappedText)
    vocabulary = make_vocabulary(text, VocabularyConfig())
    for use in (lambda: text[:5], lambda: ids_of(text, vocabulary)[:5], lambda: text.part([(0, 9)]).counts()):
        with pytest.raises(CharwrightError, match="damaged; remove it with: charwright cache --clear"):
            use()


def test_a_manifest_that_contradicts_itself_is_refused(places: Places, mixed: Path) -> None:
    open_corpus(mixed, None, places)
    [entry] = cache_of(places).entries()
    values = json.loads((entry.folder / MANIFEST).read_text(encoding="utf-8"))
    assert Manifest.from_json(values, "x") == entry.manifest
    wrong = {
        "counts": values["counts"][:-1],
        "characters": 5,
        "width": 3,
        "alphabet": "a" * 40,
        "origins": [],
        "format": 9,
    }
    for name, value in wrong.items():
        with pytest.raises(CharwrightError, match=r"^x"):
            Manifest.from_json({**values, name: value}, "x")


# The commands.


def test_prepare_and_cache(charwright: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARWRIGHT_CACHE", str(tmp_path / "cache"))
    large, small = tmp_path / "novel.txt", tmp_path / "small.txt"
    large.write_bytes(b"abcdefg\n" * (8 << 20))
    small.write_bytes(b"abcdefg\n")
    assert (
        charwright("prepare", small).out
        == "small needs no preparation: 8 characters are read into memory at each start\n"
    )
    assert charwright("prepare", "-").code == 2
    prepared = charwright("prepare", large)
    assert (prepared.code, prepared.err) == (0, "")
    assert prepared.out == "prepared novel: 67,108,864 characters, 8 of them distinct\n"
    [folder] = (tmp_path / "cache" / "texts").glob("[!.]*")
    listed = charwright("cache").out
    assert f"67.1 MB  novel  {folder.name}  67,108,864 characters\n" in listed
    assert f"from {large}\n" in listed
    inspected = charwright("inspect", large, *SMALL[:4])
    assert "67,108,864 characters, 8,388,608 lines." in inspected.out
    trained = charwright("train", large, "--out", tmp_path / "run", "--steps", "2", *SMALL)
    assert trained.code == 0
    began = time.monotonic()
    copied = charwright("generate", tmp_path / "run", "--length", "30", "--seed", "1", "--novelty", "--prompt", "a")
    assert copied.code == 0, time.monotonic() - began
    assert charwright("cache", "--clear", "other").code == 2
    assert charwright("cache", "--clear", "novel").out == "removed novel\n"
    assert charwright("cache", "--clear").out == "removed nothing\n"
    assert not folder.exists()
    shutil.rmtree(tmp_path / "cache")
    assert charwright("cache").out.endswith(f"0.0 MB  in {tmp_path / 'cache' / 'texts'}\n")
