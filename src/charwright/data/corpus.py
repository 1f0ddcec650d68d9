"""Files, folders, standard input, addresses and names become one text.

A `Corpus` knows where each part came from and its SHA-256, so that a run can find the same text again.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from charwright.config import CorpusConfig, SplitConfig
from charwright.data import named
from charwright.data.decoding import COMPRESSED, decode, decompressed, looks_binary
from charwright.errors import CorpusError, CorpusNotFoundError

STDIN_PATH = "corpus/stdin.txt"


def sha256_of(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Source:
    """One part of a corpus: where it came from and what it was.

    `kind` is file, stdin, url, name or text; `location` is an absolute path, an address or a name. For stdin it is
    the path at which a run folder keeps the text.
    """

    kind: str
    location: str
    sha256: str
    characters: int


@dataclass(frozen=True)
class Corpus:
    """A text and where it came from.

    `notes` are words for the person at the terminal; `unrepeatable` is the text that came through standard input,
    which nobody can read again.
    """

    text: str = field(repr=False)
    sources: tuple[Source, ...]
    name: str
    notes: tuple[str, ...] = ()
    unrepeatable: str = field(default="", repr=False)

    @classmethod
    def from_text(cls, text: str, name: str = "text") -> Corpus:
        """A corpus of a text that is already in memory."""
        return cls(text, (Source("text", name, sha256_of(text), len(text)),), name)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole text."""
        return sha256_of(self.text)


@dataclass(frozen=True)
class Places:
    """Where corpora are looked for, passed in so that tests need no patches.

    `data_folder` is searched first for published texts (CHARWRIGHT_DATA); `cache_folder` keeps what was downloaded;
    `stdin` is what `-` reads; `progress` is a pooch progress bar or None.
    """

    cache_folder: Path
    data_folder: Path | None = None
    stdin: BinaryIO | None = None
    progress: Any = None

    @classmethod
    def of_this_user(cls, stdin: BinaryIO | None = None, progress: Any = None) -> Places:
        """The user's own cache folder, and the folder that CHARWRIGHT_DATA names."""
        import platformdirs

        data_folder = os.environ.get("CHARWRIGHT_DATA")
        cache_folder = Path(platformdirs.user_cache_dir("charwright"))
        return cls(cache_folder, Path(data_folder) if data_folder else None, stdin, progress)


def read_corpus(
    specs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    config: CorpusConfig | None = None,
    places: Places | None = None,
) -> Corpus:
    """Read files, folders, `-`, addresses and named corpora into one text.

    Parts are joined in the order given; a part that does not end with a newline gets one before the next.

    Raises:
        CorpusError: (or a subclass) when a part cannot be found, read or decoded, or the whole is shorter than 2.
    """
    config = config or CorpusConfig()
    places = places or Places.of_this_user()
    listed = [specs] if isinstance(specs, str | os.PathLike) else list(specs)
    if not listed:
        raise CorpusError("no corpus was given; name a file, a folder, - for standard input, an address or a name")
    if listed.count("-") > 1:
        raise CorpusError("standard input can be read only once; name - once")
    parts: list[tuple[Source, str]] = []
    notes: list[str] = []
    for spec in listed:
        parts.extend(_read_spec(os.fspath(spec), config, places, notes))
    text = _joined([part for _, part in parts])
    names = ", ".join("standard input" if spec == "-" else os.fspath(spec) for spec in dict.fromkeys(listed))
    if not text:
        raise CorpusError(f"{names} is empty; there is nothing to learn from")
    if len(text) < 2:
        raise CorpusError(f"{names} has one character only; at least two are needed")
    unrepeatable = "".join(part for source, part in parts if source.kind == "stdin")
    name = _short_name(os.fspath(listed[0]))
    return Corpus(text, tuple(source for source, _ in parts), name, tuple(notes), unrepeatable)


def reread_corpus(sources: Sequence[Source], config: CorpusConfig, places: Places) -> Corpus:
    """Read the same parts again, and see that each is what it was.

    A source of the kind `stdin` is read from the file that its location names.

    Raises:
        CorpusError: when a part is gone or has changed.
    """
    if not sources:
        raise CorpusError("the run does not know the text it began with; name it with --corpus")
    parts = []
    for source in sources:
        if source.kind == "text":
            raise CorpusError("the text was given in memory and cannot be read again; name its file with --corpus")
        try:
            if source.kind == "stdin":  # kept as UTF-8, whatever it came in
                [(found, text)] = _read_kind("file", source.location, CorpusConfig(newlines="keep"), places)
            else:
                [(found, text)] = _read_kind(source.kind, source.location, config, places)
        except CorpusNotFoundError as error:
            raise CorpusError(f"{source.location} is gone; name its new place with --corpus") from error
        if found.sha256 != source.sha256:
            raise CorpusError(
                f"{source.location} has changed since this run began; name the old text with --corpus, "
                f"or start a new run"
            )
        parts.append(text)
    return Corpus(_joined(parts), tuple(sources), _short_name(sources[0].location))


def split_corpus(text: str, config: SplitConfig) -> tuple[str, str]:
    """The training text and the validation text, "" where there is none.

    `blocks` takes the end of each of up to 20 equal sections; `tail` takes the end of the whole.
    """
    # The published split of tiny shakespeare rounds the training part down, not the validation part.
    cut = int(len(text) * (1 - config.val_fraction))
    if config.val_limit is not None:
        cut = max(cut, len(text) - config.val_limit)
    wanted = len(text) - cut
    if wanted < 2 or cut < 2:
        return text, ""
    if config.val_split == "tail":
        return text[:cut], text[cut:]
    blocks = max(1, min(20, wanted // 100))
    edges = [len(text) * i // blocks for i in range(blocks + 1)]
    shares = [wanted * i // blocks for i in range(blocks + 1)]
    training, validation = [], []
    for (begin, end), (before, after) in zip(pairwise(edges), pairwise(shares), strict=True):
        cut = end - (after - before)
        training.append(text[begin:cut])
        validation.append(text[cut:end])
    return "".join(training), "".join(validation)


def _read_spec(spec: str, config: CorpusConfig, places: Places, notes: list[str]) -> Iterator[tuple[Source, str]]:
    """All parts behind one word of the command line."""
    if spec == "-":
        yield from _read_kind("stdin", STDIN_PATH, config, places)
    elif re.match("https?://", spec, re.IGNORECASE):
        if kept := named.kept_copy(spec, places.cache_folder):
            notes.append(f"{spec} was downloaded before; to fetch it again, remove {kept}")
        yield from _read_kind("url", spec, config, places)
    else:
        try:
            yield from _read_path(spec, config, places, notes)
        except OSError as error:  # a folder on the way that may not be entered, a name that is too long
            raise CorpusError(f"cannot read {_shortened(spec)}: {error.strerror}") from error


def _read_path(spec: str, config: CorpusConfig, places: Places, notes: list[str]) -> Iterator[tuple[Source, str]]:
    """A file, a folder, or else a name."""
    path = _expanded(spec)
    if spec and path.is_dir():
        yield from _read_folder(path, config, notes)
    elif path.is_file():
        yield from _read_kind("file", str(path.resolve()), config, places)
    elif spec and path.exists():
        raise CorpusError(f"{spec} is a pipe or a device, which cannot be read twice; feed it in through -")
    elif spec in named.NAMES:
        yield from _read_kind("name", spec, config, places)
    else:
        raise CorpusNotFoundError(_not_found_message(spec, path))


def _read_kind(kind: str, location: str, config: CorpusConfig, places: Places) -> Iterator[tuple[Source, str]]:
    """One part, by what it is."""
    if kind == "file":
        text = _read_file(Path(location), config)
    elif kind == "stdin":
        if places.stdin is None:
            raise CorpusError("there is no standard input to read from")
        text = decode(places.stdin.read(), config, "standard input")
    elif kind == "url":
        path = named.download(location, places.cache_folder, places.progress)
        data = decompressed(path.read_bytes(), Path(urlsplit(location).path).suffix, location)
        text = decode(data, config, location)
    elif location in named.NAMES:
        # --encoding is for the user's own files: what has a name is UTF-8 whatever stands beside it.
        data = named.read(location, places.data_folder, places.cache_folder, places.progress)
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
    """Every text file under a folder, in the order of the paths; binary files are passed over with a word."""
    skipped = found = 0
    seen: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not fnmatch.fnmatch(path.name, config.glob) or not path.is_file():
            continue
        real = path.resolve()
        if real in seen:
            continue  # Two names of one file would teach it twice.
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
        raise CorpusError(f"there is no text file under {folder} (looked for {config.glob!r})")
    if skipped:
        notes.append(f"{skipped} binary file{'s' * (skipped > 1)} under {folder} passed over")


def _joined(parts: Sequence[str]) -> str:
    """The parts one after another, each on a line of its own."""
    filled = [part for part in parts if part]
    whole = [part if part.endswith("\n") else part + "\n" for part in filled[:-1]]
    return "".join([*whole, *filled[-1:]])


def _short_name(spec: str) -> str:
    """A name for the run folder: the file's stem, the folder's name, the corpus's own."""
    if spec == "-":
        return "stdin"
    if "://" in spec:
        address = urlsplit(spec)
        return _stem(Path(address.path)) or _stem(Path(address.hostname or "")) or "text"
    path = _expanded(spec)
    if path.name in ("", ".."):  # `.` and `..` have the names of the folders that they are.
        path = path.resolve()
    return (path.name.lstrip(".") if path.is_dir() else _stem(path)) or "text"


def _expanded(spec: str) -> Path:
    return Path(os.path.expanduser(spec))  # noqa: PTH111 - Path's own raises at a user that does not exist.


def _stem(path: Path) -> str:
    """The name without its ending, two endings where the file is compressed."""
    while path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.stem.lstrip(".")


def _not_found_message(spec: str, path: Path) -> str:
    parent = path.parent
    try:
        siblings = [item.name for item in parent.iterdir()]
    except (OSError, ValueError):
        siblings = []  # There is no such folder, or it may not be listed.
    close = [str(parent / name) for name in difflib.get_close_matches(path.name, siblings, n=2)]
    close += difflib.get_close_matches(spec, named.NAMES, n=1)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the named corpora are {', '.join(named.NAMES)}"
    return f"there is no file, folder or corpus called {_shortened(spec)!r}; {hint}"


def _shortened(spec: str) -> str:
    """At most a line of what somebody typed or pasted."""
    return spec if len(spec) <= 200 else spec[:200] + "..."
