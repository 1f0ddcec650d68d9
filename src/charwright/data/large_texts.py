"""Corpora of any size: a large one is read once, in pieces, into the cache, and mapped from there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt

from charwright.config import CorpusConfig
from charwright.data.byte_streams import READ_BYTES
from charwright.data.corpus import (
    Corpus,
    Source,
    changed_error,
    check_length,
    check_recorded,
    checked_specs,
    gone_error,
    part_of_source,
    read_corpus,
    reread_corpus,
    short_name,
)
from charwright.data.decoding import REPLACEMENT, canonical_encoding
from charwright.data.map_writer import MapWriter
from charwright.data.mapped_text import MappedText
from charwright.data.parts import STDIN_PATH, Part, Places, Tally, find_parts, part_of
from charwright.data.pieces import PIECE_BYTES, UNDIVIDED, Piece
from charwright.data.prefetch import prefetch
from charwright.data.text_cache import IDS, Entry, Manifest, Origin, TextCache, write_through, writing
from charwright.data.text_pieces import is_binary, pieces_of
from charwright.errors import CorpusError, CorpusNotFoundError

FOLDER = "texts"
"""The folder of prepared texts within the cache."""

Specs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class MappedCorpus:
    """A prepared text and its sources, like `Corpus`."""

    text: MappedText = field(repr=False)
    sources: tuple[Source, ...]
    name: str
    sha256: str
    notes: tuple[str, ...] = ()
    unrepeatable: MappedText | str = field(default="", repr=False)

    @classmethod
    def of(cls, entry: Entry, name: str, notes: Sequence[str] = ()) -> MappedCorpus:
        """Open a text of the cache."""
        origin, text = entry.origin, entry.text()
        typed = _typed(text, origin.sources)
        return cls(text, origin.sources, name, entry.manifest.sha256, (*notes, *origin.notes), typed)


def _typed(text: MappedText, sources: Sequence[Source]) -> MappedText | str:
    """Return the part of a text that came through standard input."""
    at = 0
    for source in sources if any(source.kind == "stdin" for source in sources) else ():
        if at and source.characters and text[at - 1 : at] != "\n":
            at += 1  # Each part begins on a new line.
        if source.kind == "stdin":
            return text.part([(at, at + source.characters)])
        at += source.characters
    return ""


AnyCorpus = Corpus | MappedCorpus


def cache_of(places: Places) -> TextCache:
    """Return the cache of prepared texts."""
    return TextCache(places.cache_folder / FOLDER)


def open_corpus(specs: Specs, config: CorpusConfig | None = None, places: Places | None = None) -> AnyCorpus:
    """Read a corpus as `read_corpus` does; a large one is prepared once, and mapped.

    Raises:
        CorpusError: (or a subclass) as for `read_corpus`, or when the cache cannot be written.
    """
    config, places = config or CorpusConfig(), places or Places.of_this_user()
    listed = checked_specs(specs)
    if canonical_encoding(config.encoding) in UNDIVIDED:
        return read_corpus(listed, config, places)
    if "-" in listed and places.stdin is not None:
        return _open_with_stdin(listed, config, places, places.stdin)
    notes: list[str] = []
    parts = find_parts(listed, config, places, notes)
    if sum(part.text_bytes for part in parts) < places.mapped_from_bytes:
        return read_corpus(listed, config, places)
    entry = prepare(parts, short_name(listed[0]), places)
    check_length(entry.manifest.characters, listed)
    return MappedCorpus.of(entry, short_name(listed[0]), notes)


def _open_with_stdin(listed: list[str], config: CorpusConfig, places: Places, stdin: BinaryIO) -> AnyCorpus:
    """Read a corpus with standard input; long input is kept in a file until it is prepared."""
    head = b"".join(_up_to(stdin, places.mapped_from_bytes))
    places = replace(places, stdin=io.BytesIO(head))
    notes: list[str] = []
    parts = find_parts(listed, config, places, notes)
    if len(head) + sum(part.text_bytes for part in parts) < places.mapped_from_bytes:
        return read_corpus(listed, config, places)
    with cache_of(places).unfinished() as folder:
        spool = folder / "stdin"
        stamp = write_through(spool, chain([head], iter(partial(stdin.read, READ_BYTES), b"")))
        typed = replace(part_of("file", str(spool), config, places), kind="stdin", location=STDIN_PATH, stamp=stamp)
        parts = [typed if part.kind == "stdin" else part for part in parts]
        entry = prepare(parts, short_name(listed[0]), places)
        check_length(entry.manifest.characters, listed)
        return MappedCorpus.of(entry, short_name(listed[0]), notes)


def _up_to(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """Read up to `size` bytes."""
    while size and (data := stream.read(min(size, READ_BYTES))):
        yield data
        size -= len(data)


def reopen_corpus(sources: Sequence[Source], sha256: str, config: CorpusConfig, places: Places) -> AnyCorpus:
    """Read the same parts again: from the cache if it has a text of this SHA-256, otherwise from their sources.

    Raises:
        CorpusError: when the text is not in the cache, and a part is missing or has changed.
    """
    entry = cache_of(places).by_sha256(sha256)
    if entry is not None:
        return MappedCorpus.of(entry, entry.manifest.name)
    check_recorded(sources)
    parts = [part_of_source(source, config, places) for source in sources]
    undivided = canonical_encoding(config.encoding) in UNDIVIDED
    if undivided or sum(part.text_bytes for part in parts) < places.mapped_from_bytes:
        return reread_corpus(sources, config, places)
    try:
        entry = prepare(parts, short_name(sources[0].location), places)
    except CorpusNotFoundError as error:
        missing = [source for source, part in zip(sources, parts, strict=True) if not part.stamp]
        raise gone_error((missing or sources)[0]) from error
    for source, found in zip(sources, entry.origin.sources, strict=True):
        if found.sha256 != source.sha256:
            raise changed_error(source)
    return MappedCorpus.of(entry, entry.manifest.name)


def prepare(parts: Sequence[Part], name: str, places: Places, piece_bytes: int = PIECE_BYTES) -> Entry:
    """Return the text of the parts from the cache, into which it is written if it is not there.

    Raises:
        CorpusError: (or a subclass) when a part cannot be read or decoded or changes meanwhile, or the cache cannot
            be written.
    """
    cache, identity = cache_of(places), identity_of(parts)
    cache.remove_unfinished()
    found = cache.by_identity(identity)
    if found is not None:
        return found
    with cache.unfinished() as folder, _Preparation(folder, parts, places.progress, piece_bytes) as work:
        manifest = work.run(name, identity)
        if manifest.characters < 2:  # It is of no use to anyone, and the caller says so.
            return Entry(folder, manifest, manifest.origins[0])
        return cache.keep(folder, manifest)


def identity_of(parts: Sequence[Part]) -> str:
    """Return a SHA-256 of the parts as they were found, and of how they are decoded."""
    listed = [
        [part.kind, part.location, part.size, part.stamp, str(part.folder or ""), part.config.to_json()]
        for part in parts
    ]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


FLUSHED_BYTES = 64 << 20
"""What is written between two flushes: the disk works from the beginning on, not only at the end."""

PIECES_AHEAD = 4
"""Pieces that wait for each thread."""


class _Preparation:
    """Reads parts into a folder: one thread reads and decodes, one hashes and counts, this one numbers characters.

    A fourth waits for the disk.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], progress: Any, piece_bytes: int) -> None:
        self._folder, self._parts, self._progress, self._piece_bytes = folder, parts, progress, piece_bytes
        self._read = self._shown = 0
        self._whole = hashlib.sha256()
        self._summing: deque[Future[None]] = deque()
        self._flushing: Future[None] | None = None
        self._unended, self._unflushed = False, 0
        with writing(folder):
            self._writer = MapWriter(folder / IDS)
        self._sums = ThreadPoolExecutor(1, "charwright-sha256")
        self._disk = ThreadPoolExecutor(1, "charwright-disk")

    def __enter__(self) -> _Preparation:
        if self._progress is not None:
            self._progress.total = sum(part.size for part in self._parts)
            self._progress.reset()
        return self

    def __exit__(self, *_: object) -> None:
        self._sums.shutdown()
        self._disk.shutdown()
        self._writer.close()
        if self._progress is not None:
            self._progress.close()

    def run(self, name: str, identity: str) -> Manifest:
        """Read everything; returns the manifest, with which the folder is complete."""
        tally = Tally(self._parts)
        sources = []
        for part in self._parts:
            if part.folder is not None and is_binary(part, self._piece_bytes):
                tally.skipped(part)
                continue
            source = self._add(part)
            if source.characters:
                tally.found(part)
            if source.characters or part.folder is None:
                sources.append(source)
            if part.is_changed():
                raise CorpusError(f"{part.where} changed while it was read; try again")
        counts = dict(zip(self._writer.characters, self._writer.counts, strict=True))
        tally.replaced(counts.get(REPLACEMENT, 0))
        notes = tally.notes()
        with writing(self._folder):
            self._start_flush()
            self._wait_for_disk()
        self._writer.close()  # Windows does not move a folder with an open file.
        return Manifest(
            sha256=self._whole.hexdigest(),
            characters=self._writer.length,
            width=self._writer.width,
            alphabet=self._writer.characters,
            counts=tuple(self._writer.counts),
            origins=(Origin(identity, name, tuple(sources), tuple(notes)),),
        )

    def _add(self, part: Part) -> Source:
        """Append the text of a part, on a new line."""
        own, begin = hashlib.sha256(), None
        hashes = (own, self._whole) if len(self._parts) > 1 else (self._whole,)
        pieces = pieces_of(part, self._piece_bytes, self._count)
        for piece in prefetch(pieces, PIECES_AHEAD) if part.text_bytes >= self._piece_bytes else pieces:
            if begin is None:
                if self._unended:
                    self._append(Piece(b"\n"), (self._whole,))
                begin = self._writer.length
            self._append(piece, hashes)
            self._unended = not piece.utf8.endswith(b"\n")
            self._show()
        while self._summing:
            self._summing.popleft().result()
        characters = 0 if begin is None else self._writer.length - begin
        return Source(part.kind, part.location, hashes[0].hexdigest(), characters)

    def _append(self, piece: Piece, hashes: Sequence[Any]) -> None:
        with writing(self._folder):  # New characters may make the ids wider, which rewrites the file.
            ids = self._writer.ids(piece.characters)
        if len(self._summing) == PIECES_AHEAD:
            self._summing.popleft().result()
        self._summing.append(self._sums.submit(self._summarize, hashes, piece.utf8, ids))
        with writing(self._folder):
            self._writer.write(ids)
            self._unflushed += ids.nbytes
            if self._unflushed >= FLUSHED_BYTES and (self._flushing is None or self._flushing.done()):
                self._start_flush()

    def _summarize(self, hashes: Sequence[Any], utf8: bytes, ids: npt.NDArray[Any]) -> None:
        """Hash and count a piece."""
        for one in hashes:
            one.update(utf8)
        self._writer.count(ids)

    def _start_flush(self) -> None:
        """Have what is written so far brought to the disk; errors of the flush before are raised."""
        self._wait_for_disk()
        self._flushing, self._unflushed = self._disk.submit(self._writer.flush), 0

    def _wait_for_disk(self) -> None:
        if self._flushing is not None:
            self._flushing.result()

    def _count(self, size: int) -> None:
        self._read += size

    def _show(self) -> None:
        if self._progress is not None:
            read = self._read
            self._progress.update(read - self._shown)
            self._shown = read
