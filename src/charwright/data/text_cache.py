"""The cache of prepared texts: a folder for each, complete or absent, with a manifest.

A folder is named after the SHA-256 of its text. It has `ids.bin`, one id per character, and `manifest.json`: the
alphabet, the sizes, the sources and how they were decoded. `utf8.bin` and `utf8.json` are added for byte-level
vocabularies.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from charwright.data.corpus import Source
from charwright.data.mapped_ids import WIDTHS, MappedFile, damaged_error
from charwright.data.mapped_text import PIECE, Alphabet, MappedText
from charwright.data.unfinished import remove_abandoned, unfinished_name
from charwright.errors import CorpusError, DamagedRunError, RunError
from charwright.locks import locked
from charwright.storage import check_format, checked, exact_object, move, read_json, sync_folder, write_json

IDS, UTF8, OFFSETS, MANIFEST = "ids.bin", "utf8.bin", "utf8.json", "manifest.json"
ADVICE = "free some space, remove prepared texts with: charwright cache --clear, or set CHARWRIGHT_CACHE"

MOST_ORIGINS = 16
"""Ways to the same text that are remembered."""


@dataclass(frozen=True)
class Origin:
    """A way to a text: the parts as they were found (`identity`), and what reading them gave."""

    identity: str
    name: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Any, where: str) -> Origin:
        """Read plain values.

        Raises:
            DamagedRunError: when they are anything else.
        """
        item = exact_object(values, {"identity", "name", "sources", "notes"}, where)
        sources = tuple(_source(source, where) for source in checked(item["sources"], list, where))
        notes = tuple(checked(note, str, where) for note in checked(item["notes"], list, where))
        return cls(checked(item["identity"], str, where), checked(item["name"], str, where), sources, notes)


@dataclass(frozen=True)
class Manifest:
    """What a prepared text is: its size, its alphabet with the count of each character, and where it came from."""

    sha256: str
    characters: int
    width: int
    alphabet: str
    counts: tuple[int, ...]
    origins: tuple[Origin, ...]

    @property
    def name(self) -> str:
        """The name of the text, as it was first prepared."""
        return self.origins[0].name

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"format": 1, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any, where: str) -> Manifest:
        """Read what `to_json` returned.

        Raises:
            DamagedRunError: when the values are anything else, or contradict each other.
        """
        check_format(values, where)
        item = exact_object(values, {"format", "sha256", "characters", "width", "alphabet", "counts", "origins"}, where)
        manifest = cls(
            sha256=checked(item["sha256"], str, f"{where}: sha256"),
            characters=checked(item["characters"], int, f"{where}: characters"),
            width=checked(item["width"], int, f"{where}: width"),
            alphabet=checked(item["alphabet"], str, f"{where}: alphabet"),
            counts=tuple(checked(count, int, f"{where}: counts") for count in checked(item["counts"], list, where)),
            origins=tuple(
                Origin.from_json(origin, f"{where}: origins") for origin in checked(item["origins"], list, where)
            ),
        )
        if not manifest._is_consistent():
            raise DamagedRunError(f"{where} is damaged: its values contradict each other")
        return manifest

    def _is_consistent(self) -> bool:
        numbered = self.width in WIDTHS and len(self.alphabet) <= np.iinfo(WIDTHS[self.width]).max
        distinct = len(set(self.alphabet)) == len(self.alphabet) == len(self.counts)
        whole = not any("\ud800" <= character <= "\udfff" for character in self.alphabet)
        counted = min(self.counts, default=0) > 0 and sum(self.counts) == self.characters
        return numbered and distinct and whole and counted and bool(self.origins)


def _source(values: Any, where: str) -> Source:
    item = exact_object(values, {"kind", "location", "sha256", "characters"}, f"{where}: sources")
    kind, location, sha256 = (checked(item[name], str, f"{where}: sources") for name in ("kind", "location", "sha256"))
    return Source(kind, location, sha256, checked(item["characters"], int, f"{where}: sources"))


@dataclass
class Entry:
    """A text in the cache."""

    folder: Path
    manifest: Manifest
    origin: Origin
    """How it was found; for a text that was looked up by its SHA-256, the first."""
    _text: MappedText | None = field(default=None, repr=False)

    @property
    def size_bytes(self) -> int:
        """The size of its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def text(self) -> MappedText:
        """Return the text.

        Raises:
            CorpusError: when its file cannot be opened.
        """
        if self._text is None:
            manifest = self.manifest
            try:
                file = MappedFile(self.folder / IDS, manifest.width, manifest.characters)
            except (OSError, ValueError) as error:
                raise CorpusError(f"cannot read {self.folder / IDS}: {error}") from error
            alphabet = Alphabet(manifest.alphabet, manifest.counts)
            self._text = MappedText(file, alphabet, manifest.characters, self._utf8)
        return self._text

    def _utf8(self) -> StoredBytes:
        """Return the bytes of the text, which are written if they are not there yet."""
        size = int(self.text().alphabet.utf8_lengths @ self.text().alphabet.counts)
        path = self.folder / UTF8
        with suppress(RunError):
            offsets = _offsets(self.folder / OFFSETS, self.manifest.characters, size)
            if path.is_file() and path.stat().st_size == size:
                return StoredBytes(MappedFile(path, 1, size), self.text(), offsets)
        remove_abandoned(self.folder)
        with writing(self.folder):
            offsets = _write_utf8(path, self.text())
        if offsets[-1] != size:
            raise damaged_error()
        return StoredBytes(MappedFile(path, 1, size), self.text(), offsets)


def _offsets(path: Path, characters: int, size: int) -> tuple[int, ...]:
    """Read what `_write_utf8` returned for a text of so many characters and bytes.

    Raises:
        DamagedRunError: when the file has anything else.
    """
    values = exact_object(read_json(path), {"format", "offsets"}, str(path))
    offsets = [checked(offset, int, f"{path}: offsets") for offset in checked(values["offsets"], list, str(path))]
    ends = len(offsets) == -(-characters // PIECE) + 1 and (offsets[0], offsets[-1]) == (0, size)
    if not ends or offsets != sorted(offsets):
        raise DamagedRunError(f"{path} is damaged: these are not the offsets of the text")
    return tuple(offsets)


def _write_utf8(path: Path, text: MappedText) -> tuple[int, ...]:
    """Write a text as UTF-8; returns where each piece begins, and the end."""
    offsets = [0]
    with unfinished_name(f".{path.name}", "tmp") as name:
        temporary = path.with_name(name)
        try:
            with temporary.open("wb") as file:
                for piece in text.pieces():
                    data = piece.encode("utf-8")
                    file.write(data)
                    offsets.append(offsets[-1] + len(data))
                file.flush()
                os.fsync(file.fileno())
            move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    write_json(path.with_name(OFFSETS), {"format": 1, "offsets": offsets})
    return tuple(offsets)


@dataclass(frozen=True)
class StoredBytes:
    """The UTF-8 of a text, and where each `PIECE` of its characters begins."""

    file: MappedFile
    text: MappedText
    offsets: tuple[int, ...]

    def offset(self, character: int) -> int:
        """Return the position of the first byte of a character.

        Raises:
            CorpusError: when the ids of the text are damaged.
        """
        piece, within = divmod(character, PIECE)
        if not within:
            return self.offsets[piece]
        found = self.offsets[piece] + len(self.text[character - within : character].encode("utf-8"))
        if found > self.offsets[piece + 1]:
            raise damaged_error()
        return found


class TextCache:
    """The prepared texts in a folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`; other files in it are left alone."""
        self.folder = folder

    def entries(self) -> Iterator[Entry]:
        """Yield the intact texts, by folder name; damaged ones are left out."""
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not path.name.startswith(".") and (entry := _opened(path)) is not None:
                yield entry

    def by_sha256(self, sha256: str) -> Entry | None:
        """Return the text with this SHA-256, or None."""
        entry = _opened(self.folder / sha256[:16]) if sha256 else None
        return entry if entry is not None and entry.manifest.sha256 == sha256 else None

    def by_identity(self, identity: str) -> Entry | None:
        """Return the text that was prepared from these sources, or None."""
        for entry in self.entries():
            for origin in entry.manifest.origins:
                if origin.identity == identity:
                    return replace(entry, origin=origin)
        return None

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """Create a folder to prepare a text in; what is left of it after the block is removed.

        Raises:
            CorpusError: when the system refuses, as when the disk is full.
        """
        self.remove_unfinished()
        with unfinished_name("", "new") as name:
            path = self.folder / name
            try:
                with writing(self.folder):
                    path.mkdir(parents=True)
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def keep(self, unfinished: Path, manifest: Manifest) -> Entry:
        """Complete an unfinished folder and move it into place, unless the same text is there already.

        Raises:
            CorpusError: when the system refuses, as when the disk is full.
        """
        place, [origin] = self.folder / manifest.sha256[:16], manifest.origins
        with writing(self.folder), self._alone():
            if self.by_sha256(manifest.sha256) is None:
                write_json(unfinished / MANIFEST, manifest.to_json())
                sync_folder(unfinished)
                if place.exists():
                    shutil.rmtree(place)  # It is damaged.
                move(unfinished, place)
                sync_folder(self.folder)
            present = self.by_sha256(manifest.sha256) or Entry(place, manifest, origin)
            if origin not in present.manifest.origins:
                first, *others = (*present.manifest.origins, origin)  # The first one gives the text its name.
                origins = (first, *others[1 - MOST_ORIGINS :])
                write_json(place / MANIFEST, replace(present.manifest, origins=origins).to_json())
        return replace(present, origin=origin)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process moves or removes texts, which takes milliseconds."""
        while True:
            with locked(self.folder / ".lock") as held:
                if held:
                    yield
                    return
            time.sleep(0.02)

    def clear(self, name: str | None = None) -> list[str]:
        """Remove all texts, or those of a name or a folder's name; returns what was removed.

        Raises:
            CorpusError: when the system refuses.
        """
        if not self.folder.is_dir():
            return []
        self.remove_unfinished()
        removed = []
        with writing(self.folder), self._alone():
            for path in sorted(self.folder.iterdir()):
                entry = _opened(path)
                shown = entry.manifest.name if entry is not None else path.name
                ours = entry is not None or re.fullmatch("[0-9a-f]{16}", path.name)
                if ours and name in (None, shown, path.name):
                    shutil.rmtree(path)
                    removed.append(shown)
        return removed

    def remove_unfinished(self) -> None:
        """Remove what killed processes left, beside the texts and within them."""
        if self.folder.is_dir():
            remove_abandoned(self.folder)
            for entry in self.folder.glob("[0-9a-f]*"):
                remove_abandoned(entry)


def write_through(path: Path, parts: Iterable[bytes]) -> str:
    """Write data to a new file as it comes; returns its SHA-256.

    Raises:
        CorpusError: when the system refuses, as when the disk is full.
    """
    sha256 = hashlib.sha256()
    with writing(path.parent), path.open("wb") as file:
        for data in parts:
            sha256.update(data)
            file.write(data)
    return sha256.hexdigest()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says into one line.

    Raises:
        CorpusError: when the system refuses to write in `folder`.
    """
    try:
        yield
    except RunError as error:
        raise CorpusError(f"{error.for_shell}; {ADVICE}") from error
    except OSError as error:
        advice = (
            "set CHARWRIGHT_CACHE to a folder that can be written" if isinstance(error, PermissionError) else ADVICE
        )
        raise CorpusError(f"cannot write in {folder}: {error.strerror or error}; {advice}") from error


def _opened(path: Path) -> Entry | None:
    """Return the text in a folder, or None if there is none that is intact."""
    where = path / MANIFEST
    if not where.is_file():
        return None
    try:
        manifest = Manifest.from_json(read_json(where), str(where))
        size = (path / IDS).stat().st_size
    except (RunError, OSError):
        return None  # Damaged, or being removed: it is as good as absent, and is prepared again.
    return Entry(path, manifest, manifest.origins[0]) if size == manifest.width * manifest.characters else None
