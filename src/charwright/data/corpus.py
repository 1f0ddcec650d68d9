"""Read files, folders, standard input, URLs and named corpora into one text.

A `Corpus` records the source and SHA-256 of each part, so that a run can read the same text again.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from charwright.config import CorpusConfig
from charwright.data import named
from charwright.data.decoding import COMPRESSED, decode, decompressed, looks_binary
from charwright.errors import CorpusError, CorpusNotFoundError

STDIN_PATH = "corpus/stdin.txt"


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Source:
    """One part of a corpus: its origin, SHA-256 and length.

    `kind` is file, stdin, url, name or text. `location` is an absolute path, a URL or a name; for stdin it is the path
    of the copy in the run folder.
    """

    kind: str
    location: str
    sha256: str
    characters: int


@dataclass(frozen=True)
class Corpus:
    """A text and its sources.

    `notes` are notices for the user; `unrepeatable` is the text from standard input, which cannot be read twice.
    """

    text: str = field(repr=False)
    sources: tuple[Source, ...]
    name: str
    notes: tuple[str, ...] = ()
    unrepeatable: str = field(default="", repr=False)

    @classmethod
    def from_text(cls, text: str, name: str = "text") -> Corpus:
        """Wrap a text that is already in memory."""
        return cls(text, (Source("text", name, sha256_of(text), len(text)),), name)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole text."""
        return sha256_of(self.text)


@dataclass(frozen=True)
class Places:
    """Where corpora are read from; passed as an argument so that tests need no patching.

    `data_folder` (CHARWRIGHT_DATA) is searched first for published texts, `cache_folder` holds downloads, `stdin` is
    what `-` reads, and `progress` is a pooch progress bar or None. `offline` refuses downloads.
    """

    cache_folder: Path
    data_folder: Path | None = None
    stdin: BinaryIO | None = None
    progress: Any = None
    offline: bool = False

    @classmethod
    def of_this_user(cls, stdin: BinaryIO | None = None, progress: Any = None) -> Places:
        """Return the user's cache folder and the folder in CHARWRIGHT_DATA."""
        import platformdirs

        data_folder = os.environ.get("CHARWRIGHT_DATA")
        cache_folder = Path(platformdirs.user_cache_dir("charwright"))
        return cls(cache_folder, Path(data_folder) if data_folder else None, stdin, progress)


def read_corpus(
    specs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    config: CorpusConfig | None = None,
    places: Places | None = None,
) -> Corpus:
    """Read files, folders, `-` (standard input), URLs and named corpora into one text.

    Parts are joined in the given order, with a newline between parts where one is missing.

    Raises:
        CorpusError: (or a subclass) when a part cannot be found, read or decoded, or the text has fewer than two
            characters.
    """
    config = config or CorpusConfig()
    places = places or Places.of_this_user()
    listed = [specs] if isinstance(specs, str | os.PathLike) else list(specs)
    if not listed:
        raise CorpusError("no corpus given; pass a file, a folder, - (standard input), a URL or a named corpus")
    if listed.count("-") > 1:
        raise CorpusError("standard input can be read only once; pass - once")
    parts: list[tuple[Source, str]] = []
    notes: list[str] = []
    for spec in listed:
        parts.extend(_read_spec(os.fspath(spec), config, places, notes))
    text = _joined([part for _, part in parts])
    names = ", ".join("standard input" if spec == "-" else os.fspath(spec) for spec in dict.fromkeys(listed))
    if not text:
        raise CorpusError(f"{names} is empty; give a text of at least two characters")
    if len(text) < 2:
        raise CorpusError(f"{names} has only one character; at least two are needed")
    unrepeatable = "".join(part for source, part in parts if source.kind == "stdin")
    name = _short_name(os.fspath(listed[0]))
    return Corpus(text, tuple(source for source, _ in parts), name, tuple(notes), unrepeatable)


def reread_corpus(sources: Sequence[Source], config: CorpusConfig, places: Places) -> Corpus:
    """Read the same parts again and check that none has changed.

    A source of kind `stdin` is read from the file at its location.

    Raises:
        CorpusError: when a part is missing or has changed.
    """
    if not sources:
        raise CorpusError("the run does not record its training text; give it with --corpus")
    parts = []
    for source in sources:
        if source.kind == "text":
            raise CorpusError(
                "the training text was passed in memory and cannot be read again; give its file with --corpus"
            )
        try:
            if source.kind == "stdin":  # the copy is UTF-8, whatever the encoding of the input
                [(found, text)] = _read_kind("file", source.location, CorpusConfig(newlines="keep"), places)
            else:
                [(found, text)] = _read_kind(source.kind, source.location, config, places)
        except CorpusNotFoundError as error:
            raise CorpusError(f"{source.location} is gone; give its new location with --corpus") from error
        if found.sha256 != source.sha256:
            raise CorpusError(
                f"{source.location} has changed since this run started; give the original text with --corpus "
                f"or start a new run"
            )
        parts.append(text)
    return Corpus(_joined(parts), tuple(sources), _short_name(sources[0].location))


def _read_spec(spec: str, config: CorpusConfig, places: Places, notes: list[str]) -> Iterator[tuple[Source, str]]:
    """Read all parts that one command-line argument names."""
    if spec == "-":
        yield from _read_kind("stdin", STDIN_PATH, config, places)
    elif re.match("https?://", spec, re.IGNORECASE):
        if kept := named.kept_copy(spec, places.cache_folder):
            notes.append(f"using the cached copy of {spec}; to download it again, remove {kept}")
        yield from _read_kind("url", spec, config, places)
    else:
        try:
            yield from _read_path(spec, config, places, notes)
        except OSError as error:  # a parent folder without permission, a name that is too long
            raise CorpusError(f"cannot read {_shortened(spec)}: {error.strerror}") from error


def _read_path(spec: str, config: CorpusConfig, places: Places, notes: list[str]) -> Iterator[tuple[Source, str]]:
    """Read a file, a folder or a named corpus."""
    path = _expanded(spec)
    if spec and path.is_dir():
        yield from _read_folder(path, config, notes)
    elif path.is_file():
        yield from _read_kind("file", str(path.resolve()), config, places)
    elif spec and path.exists():
        raise CorpusError(
            f"{spec} is a pipe or a device, which cannot be read twice; pass it through standard input with -"
        )
    elif spec in named.NAMES:
        yield from _read_kind("name", spec, config, places)
    else:
        raise CorpusNotFoundError(_not_found_message(spec, path))


def _read_kind(kind: str, location: str, config: CorpusConfig, places: Places) -> Iterator[tuple[Source, str]]:
    """Read one part of the given kind."""
    if kind == "file":
        text = _read_file(Path(location), config)
    elif kind == "stdin":
        if places.stdin is None:
            raise CorpusError("there is no standard input to read; give a file")
        text = decode(places.stdin.read(), config, "standard input")
    elif kind == "url":
        path = named.download(location, places.cache_folder, places.progress, offline=places.offline)
        data = decompressed(path.read_bytes(), Path(urlsplit(location).path).suffix, location)
        text = decode(data, config, location)
    elif location in named.NAMES:
        # --encoding applies to the user's files; named corpora are always UTF-8.
        data = named.read(location, places.data_folder, places.cache_folder, places.progress, offline=places.offline)
        text = decode(data, replace(config, encoding="utf-8"), location)
    else:
        raise CorpusNotFoundError(_not_found_message(location, Path(location)))
    yield Source(kind, location, sha256_of(text), len(text)), text


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CorpusNotFoundError(_not_found_message(str(path), path)) from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error


def _read_file(path: Path, config: CorpusConfig) -> str:
    return decode(decompressed(_read_bytes(path), path.suffix, str(path)), config, str(path))


def _read_folder(folder: Path, config: CorpusConfig, notes: list[str]) -> Iterator[tuple[Source, str]]:
    """Read every text file under a folder, sorted by path; binary files are skipped with a note."""
    skipped = found = 0
    seen: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not fnmatch.fnmatch(path.name, config.glob) or not path.is_file():
            continue
        real = path.resolve()
        if real in seen:
            continue  # A second link to the same file.
        seen.add(real)
        data = decompressed(_read_bytes(path), path.suffix, str(path))
        if looks_binary(data, config.encoding):
            skipped += 1
            continue
        text = decode(data, config, str(path))
        if text:
            found += 1
            yield Source("file", str(real), sha256_of(text), len(text)), text
    if not found:
        raise CorpusError(f"there is no text file under {folder} that matches --glob {config.glob!r}")
    if skipped:
        notes.append(f"skipped {skipped} binary file{'s' * (skipped > 1)} under {folder}")


def _joined(parts: Sequence[str]) -> str:
    """Join the parts, each starting on a new line."""
    filled = [part for part in parts if part]
    whole = [part if part.endswith("\n") else part + "\n" for part in filled[:-1]]
    return "".join([*whole, *filled[-1:]])


def _short_name(spec: str) -> str:
    """Return a name for the run folder: the file's stem, the folder's name or the corpus's name."""
    if spec == "-":
        return "stdin"
    if "://" in spec:
        address = urlsplit(spec)
        return _stem(Path(address.path)) or _stem(Path(address.hostname or "")) or "text"
    path = _expanded(spec)
    if path.name in ("", ".."):  # `.` and `..` take the name of the folder.
        path = path.resolve()
    return (path.name.lstrip(".") if path.is_dir() else _stem(path)) or "text"


def _expanded(spec: str) -> Path:
    return Path(os.path.expanduser(spec))  # noqa: PTH111 - Path.expanduser raises for an unknown user.


def _stem(path: Path) -> str:
    """Return the name without its suffix, and without the suffix of a compressed file."""
    while path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.stem.lstrip(".")


def _not_found_message(spec: str, path: Path) -> str:
    parent = path.parent
    try:
        siblings = [item.name for item in parent.iterdir()]
    except (OSError, ValueError):
        siblings = []  # The folder is missing or unreadable.
    close = [str(parent / name) for name in difflib.get_close_matches(path.name, siblings, n=2)]
    close += difflib.get_close_matches(spec, named.NAMES, n=1)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the named corpora are {', '.join(named.NAMES)}"
    return f"there is no file, folder or corpus named {_shortened(spec)!r}; {hint}"


def _shortened(spec: str) -> str:
    """Return an argument cut to 200 characters."""
    return spec if len(spec) <= 200 else spec[:200] + "..."
