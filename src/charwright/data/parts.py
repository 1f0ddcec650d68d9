"""Find the parts of a corpus: files, folders, globs, standard input, addresses and names. Nothing is decoded."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from charwright.config import CorpusConfig
from charwright.data import named
from charwright.data.byte_streams import COMPRESSED, EXPANSION, is_remote, open_stream, remote_file, suffix_of
from charwright.data.decoding import replacement_note
from charwright.errors import CorpusError, CorpusNotFoundError

STDIN_PATH = "corpus/stdin.txt"

MAPPED_FROM_BYTES = 64 << 20
"""From this size on a text is kept on disk; a smaller one is read into memory, which takes a second."""


@dataclass(frozen=True)
class Places:
    """Where corpora are read from; passed as an argument so that tests need no patching.

    `data_folder` (CHARWRIGHT_DATA) is searched first for published texts, `cache_folder` (CHARWRIGHT_CACHE) holds
    downloads and prepared texts, `stdin` is what `-` reads, and `progress` is a pooch progress bar or None. `offline`
    refuses downloads. Texts of at least `mapped_from_bytes` are kept on disk where that is possible.
    """

    cache_folder: Path
    data_folder: Path | None = None
    stdin: BinaryIO | None = None
    progress: Any = None
    offline: bool = False
    mapped_from_bytes: int = MAPPED_FROM_BYTES

    @classmethod
    def of_this_user(cls, stdin: BinaryIO | None = None, progress: Any = None) -> Places:
        """Return the user's cache folder, or that in CHARWRIGHT_CACHE, and the folder in CHARWRIGHT_DATA."""
        import platformdirs

        data_folder = os.environ.get("CHARWRIGHT_DATA")
        cache_folder = Path(os.environ.get("CHARWRIGHT_CACHE") or platformdirs.user_cache_dir("charwright"))
        return cls(cache_folder, Path(data_folder) if data_folder else None, stdin, progress)


@dataclass(frozen=True)
class Part:
    """One part of a corpus, not yet read; `kind` and `location` are those of its `Source`.

    `stamp` changes when the part does. A part with a `folder` is skipped if it is binary; `config` says how to decode.
    """

    kind: str
    location: str
    config: CorpusConfig
    opener: Callable[[], BinaryIO]
    suffix: str = ""
    size: int = 0
    stamp: str = ""
    folder: Path | None = None

    @property
    def where(self) -> str:
        """How messages name the part."""
        return "standard input" if self.kind == "stdin" and self.location == STDIN_PATH else self.location

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text it has."""
        return self.size * EXPANSION if self.suffix.lower() in COMPRESSED else self.size

    def stream(self, count: Callable[[int], None] | None = None) -> BinaryIO:
        """Open the part, decompressed; `count` is called with the number of each bytes that are read.

        Raises:
            CorpusError: (or a subclass) when it cannot be opened.
        """
        try:
            return open_stream(self.opener, self.suffix, self.where, count)
        except FileNotFoundError as error:
            raise CorpusNotFoundError(not_found_message(self.location, Path(self.location))) from error
        except OSError as error:
            raise CorpusError(f"cannot read {self.where}: {error.strerror or error}") from error

    def read(self) -> bytes:
        """Read all of the part, decompressed; errors as for `stream`."""
        stream = self.stream()
        try:
            return stream.read()
        except OSError as error:
            raise CorpusError(f"cannot read {self.where}: {error.strerror or error}") from error
        finally:
            if self.kind != "stdin" or self.location != STDIN_PATH:
                stream.close()

    def is_changed(self) -> bool:
        """Whether a file is not the one that was found."""
        return self.kind == "file" and stamp_of(Path(self.location)) != (self.size, self.stamp)


def stamp_of(path: Path) -> tuple[int, str]:
    """Return the size of a file and the time of its last change; (0, "") if it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return 0, ""
    return found.st_size, str(found.st_mtime_ns)


def find_parts(specs: Sequence[str], config: CorpusConfig, places: Places, notes: list[str]) -> list[Part]:
    """Find what the arguments name, in their order; URLs are downloaded, and `notes` gets notices for the user.

    Raises:
        CorpusError: (or a subclass) when a part cannot be found or downloaded.
    """
    parts: list[Part] = []
    for spec in specs:
        if re.match("https?://", spec, re.IGNORECASE) and (kept := named.kept_copy(spec, places.cache_folder)):
            notes.append(f"using the cached copy of {spec}; to download it again, remove {kept}")
        try:
            parts.extend(_parts_of_spec(spec, config, places))
        except OSError as error:  # a parent folder without permission, a name that is too long
            raise CorpusError(f"cannot read {shortened(spec)}: {error.strerror}") from error
    return parts


def part_of(kind: str, location: str, config: CorpusConfig, places: Places) -> Part:
    """Return one part by its kind and location, as its `Source` records them.

    Raises:
        CorpusError: (or a subclass) when it cannot be found or downloaded.
    """
    if kind == "file":
        return _file_part(kind, Path(location), location, config)
    if kind == "stdin":  # A copy is UTF-8, whatever the encoding of the input.
        if location != STDIN_PATH:
            return _file_part(kind, Path(location), location, CorpusConfig(newlines="keep"))
        if places.stdin is None:
            raise CorpusError("there is no standard input to read; give a file")
        stdin = places.stdin
        return Part(kind, location, config, lambda: stdin)
    if kind == "url" and is_remote(location):
        remote = remote_file(location)
        return Part(kind, location, config, remote.opener, suffix_of(location), remote.size, remote.stamp)
    if kind == "url":
        path = named.download(location, places.cache_folder, places.progress, offline=places.offline)
        return replace(_file_part(kind, path, location, config), suffix=suffix_of(location))
    if location in named.NAMES:
        # --encoding applies to the user's files; named corpora are always UTF-8.
        data = named.read(location, places.data_folder, places.cache_folder, places.progress, offline=places.offline)
        config = replace(config, encoding="utf-8")
        stamp = hashlib.sha256(data).hexdigest()
        return Part(kind, location, config, lambda: io.BytesIO(data), size=len(data), stamp=stamp)
    raise CorpusNotFoundError(not_found_message(location, Path(location)))


def _parts_of_spec(spec: str, config: CorpusConfig, places: Places) -> Iterator[Part]:
    """Find all parts that one command-line argument names."""
    path = expanded(spec)
    if spec == "-":
        yield part_of("stdin", STDIN_PATH, config, places)
    elif re.match("https?://", spec, re.IGNORECASE) or is_remote(spec):
        yield part_of("url", spec, config, places)
    elif spec and path.is_dir():
        yield from _folder_parts(path, config)
    elif path.is_file():
        yield part_of("file", str(path.resolve()), config, places)
    elif spec and path.exists():
        raise CorpusError(
            f"{spec} is a pipe or a device, which cannot be read twice; pass it through standard input with -"
        )
    elif spec in named.NAMES:
        yield part_of("name", spec, config, places)
    elif matches := _matching(path):
        yield from (part_of("file", str(match.resolve()), config, places) for match in matches)
    else:
        raise CorpusNotFoundError(not_found_message(spec, path))


def _matching(pattern: Path) -> list[Path]:
    """Return the files that match a glob, sorted; none if it is not one."""
    if not glob.has_magic(str(pattern)):
        return []
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]  # noqa: PTH207


def _file_part(kind: str, path: Path, location: str, config: CorpusConfig) -> Part:
    size, stamp = stamp_of(path)
    return Part(kind, location, config, lambda: path.open("rb", buffering=0), path.suffix, size, stamp)


def _folder_parts(folder: Path, config: CorpusConfig) -> Iterator[Part]:
    """Find every file under a folder that may be text and belongs to no run, sorted by path."""
    if _is_run(folder):
        raise CorpusError(f"{folder} is a run, not a text; name a text, or continue it with charwright train --resume")

    @cache
    def is_within_run(place: Path) -> bool:
        return place != folder and (_is_run(place) or is_within_run(place.parent))

    seen: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not fnmatch.fnmatch(path.name, config.glob) or not path.is_file():
            continue
        if is_within_run(path.parent):
            continue
        real = path.resolve()
        if real not in seen:  # Otherwise it is a second link to the same file.
            seen.add(real)
            yield replace(_file_part("file", real, str(real), config), suffix=path.suffix, folder=folder)
    if not seen:
        raise no_text_error(folder, config)


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "vocabulary.json").is_file()


def no_text_error(folder: Path, config: CorpusConfig) -> CorpusError:
    """Return the error of a folder without texts."""
    return CorpusError(f"there is no text file under {folder} that matches --glob {config.glob!r}")


class Tally:
    """Counts what was read in each folder."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Expect a text in the folders of these parts."""
        self._configs = {part.folder: part.config for part in parts if part.folder is not None}
        self._found: set[Path | None] = set()
        self._skipped = dict.fromkeys(self._configs, 0)
        self._config, self._replaced = parts[0].config if parts else CorpusConfig(), 0

    def found(self, part: Part) -> None:
        """Record that a part is a text that is not empty."""
        self._found.add(part.folder)

    def replaced(self, characters: int) -> None:
        """Record so many U+FFFD in the text."""
        self._replaced += characters

    def skipped(self, part: Part) -> None:
        """Record that a part of a folder is binary."""
        if part.folder is not None:
            self._skipped[part.folder] += 1

    def notes(self) -> list[str]:
        """Return the notices about skipped files, and about what could not be decoded.

        Raises:
            CorpusError: when a folder has no text.
        """
        for folder, config in self._configs.items():
            if folder not in self._found:
                raise no_text_error(folder, config)
        skipped = [
            f"skipped {count} binary file{'s' * (count > 1)} under {folder}"
            for folder, count in self._skipped.items()
            if count
        ]
        unread = self._replaced and self._config.errors == "replace"
        return [*skipped, replacement_note(self._replaced, self._config)] if unread else skipped


def expanded(spec: str) -> Path:
    """Return the path of an argument; `~` is the user's home."""
    return Path(os.path.expanduser(spec))  # noqa: PTH111 - Path.expanduser raises for an unknown user.


def not_found_message(spec: str, path: Path) -> str:
    """Describe an argument that names nothing, with similar names."""
    if path.is_symlink():
        return f"{spec} is a link to {path.readlink()}, which does not exist"
    if set(spec) & set("*?["):
        return f"{shortened(spec)!r} matches no file"
    parent = path.parent
    try:
        siblings = [item.name for item in parent.iterdir()]
    except (OSError, ValueError):
        siblings = []  # The folder is missing or unreadable.
    close = [str(parent / name) for name in _similar(path, siblings)]
    close += difflib.get_close_matches(spec, named.NAMES, n=1)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the named corpora are {', '.join(named.NAMES)}"
    return f"there is no file, folder or corpus named {shortened(spec)!r}; {hint}"


def _similar(path: Path, names: Sequence[str]) -> list[str]:
    """At most two of some names that are like a path's, apart from the endings, which many files share."""
    stems: dict[str, list[str]] = {}
    for name in sorted(names):
        stems.setdefault(Path(name).stem, []).append(name)
    found = [name for stem in difflib.get_close_matches(path.stem, stems, n=2) for name in stems[stem]]
    return sorted(found, key=lambda name: Path(name).suffix != path.suffix)[:2]


def shortened(spec: str) -> str:
    """Return an argument cut to 200 characters."""
    return spec if len(spec) <= 200 else spec[:200] + "..."
