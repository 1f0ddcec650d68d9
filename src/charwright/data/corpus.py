"""Read files, folders, standard input, URLs and named corpora into one text.

A `Corpus` records the source and SHA-256 of each part, so that a run can read the same text again.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

from charwright import notebook
from charwright.arguments import PATHS, require, require_paths
from charwright.config import CorpusConfig
from charwright.data.byte_streams import COMPRESSED
from charwright.data.decoding import REPLACEMENT, decode, looks_binary
from charwright.data.parts import Part, Places, Tally, expanded, find_parts, part_of
from charwright.data.portable_names import portable_name
from charwright.errors import CorpusError, CorpusNotFoundError

MOST_PATH = 1000
"""Characters of a path or an address; what is longer, and no path, is taken for a text."""


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

    def _repr_html_(self) -> str:
        rows = [("characters", f"{len(self.text):,}"), ("different characters", f"{len(set(self.text)):,}")]
        rows += [(source.kind, f"{source.location}, {source.characters:,} characters") for source in self.sources[:10]]
        rows += [("and", f"{len(self.sources) - 10:,} more")] * (len(self.sources) > 10)
        return notebook.facts(f"Corpus {self.name}", [*rows, ("SHA-256", self.sha256)])


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
    listed = checked_specs(specs)
    notes: list[str] = []
    found = find_parts(listed, config, places, notes)
    parts = [(source_of(part, text), text) for part, text in _read_parts(found, notes)]
    text = _joined([part for _, part in parts])
    check_length(len(text), listed)
    unrepeatable = "".join(part for source, part in parts if source.kind == "stdin")
    return Corpus(text, tuple(source for source, _ in parts), short_name(listed[0]), tuple(notes), unrepeatable)


def checked_specs(specs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the arguments of `read_corpus` as a list of strings.

    Raises:
        UsageError: when one is no path.
        CorpusError: when there are none, one is a text itself, or standard input is there twice.
    """
    require_paths(specs)
    listed = [specs] if isinstance(specs, str | os.PathLike) else list(specs)
    if not listed:
        raise CorpusError("no corpus given; pass a file, a folder, - (standard input), a URL or a named corpus")
    if listed.count("-") > 1:
        raise CorpusError("standard input can be read only once; pass - once")
    for spec in listed:
        require(spec, (str, os.PathLike), PATHS)
        if isinstance(spec, str) and ("\n" in spec.strip() or len(spec) > MOST_PATH) and not os.path.lexists(spec):
            raise CorpusError(f"a text of {len(spec):,} characters is no name of a file: save it in one")
    return [os.fspath(spec) for spec in listed]


def check_length(characters: int, specs: Sequence[str]) -> None:
    """Check that a text has a character to learn from and one to predict.

    Raises:
        CorpusError: when it has fewer than two characters.
    """
    names = ", ".join("standard input" if spec == "-" else spec for spec in dict.fromkeys(specs))
    if not characters:
        raise CorpusError(f"{names} is empty; give a text of at least two characters")
    if characters < 2:
        raise CorpusError(f"{names} has only one character; at least two are needed")


def reread_corpus(sources: Sequence[Source], config: CorpusConfig, places: Places) -> Corpus:
    """Read the same parts again and check that none has changed.

    A source of kind `stdin` is read from the file at its location.

    Raises:
        CorpusError: when a part is missing or has changed.
    """
    check_recorded(sources)
    parts = []
    for source in sources:
        part = part_of_source(source, config, places)
        try:
            text = decode(part.read(), part.config, part.where)
        except CorpusNotFoundError as error:
            raise gone_error(source) from error
        if sha256_of(text) != source.sha256:
            raise changed_error(source)
        parts.append(text)
    return Corpus(_joined(parts), tuple(sources), short_name(sources[0].location))


def check_recorded(sources: Sequence[Source]) -> None:
    """Check that a run knows its text.

    Raises:
        CorpusError: when it does not.
    """
    if not sources:
        raise CorpusError("the run does not record its training text; give it with --corpus")


def part_of_source(source: Source, config: CorpusConfig, places: Places) -> Part:
    """Find a part of a corpus again.

    Raises:
        CorpusError: when it is gone, or was passed in memory.
    """
    if source.kind == "text":
        raise CorpusError(
            "the training text was passed in memory and cannot be read again; give its file with --corpus"
        )
    try:
        return part_of(source.kind, source.location, config, places)
    except CorpusNotFoundError as error:
        raise gone_error(source) from error


def gone_error(source: Source) -> CorpusError:
    """Return the error of a part that is not there any more."""
    return CorpusError(f"{source.location} is gone; give its new location with --corpus")


def changed_error(source: Source) -> CorpusError:
    """Return the error of a part that is another text than it was."""
    return CorpusError(
        f"{source.location} has changed since this run started; give the original text with --corpus or start a new run"
    )


def source_of(part: Part, text: str) -> Source:
    """Record a part that was read."""
    return Source(part.kind, part.location, sha256_of(text), len(text))


def _read_parts(parts: Sequence[Part], notes: list[str]) -> Iterator[tuple[Part, str]]:
    """Read and decode the parts; binary files of folders are skipped with a note, empty ones without."""
    tally = Tally(parts)
    for part in parts:
        data = part.read()
        if part.folder is not None and looks_binary(data, part.config):
            tally.skipped(part)
            continue
        text = decode(data, part.config, part.where)
        if text:
            tally.found(part)
            tally.replaced(text.count(REPLACEMENT))
        if text or part.folder is None:
            yield part, text
    notes.extend(tally.notes())


def _joined(parts: Sequence[str]) -> str:
    """Join the parts, each starting on a new line."""
    filled = [part for part in parts if part]
    whole = [part if part.endswith("\n") else part + "\n" for part in filled[:-1]]
    return "".join([*whole, *filled[-1:]])


def short_name(spec: str) -> str:
    """Return a name for the run folder: the file's stem, the name of a folder or corpus, that of a pattern's folder."""
    if spec == "-":
        return "stdin"
    if "://" in spec:
        address = urlsplit(spec)
        return portable_name(_stem(Path(address.path)) or _stem(Path(address.hostname or "")))
    path = expanded(spec)
    if glob.has_magic(spec) and not path.exists():
        path = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    if path.name in ("", ".."):  # `.` and `..` take the name of the folder.
        path = path.resolve()
    return portable_name(path.name.lstrip(".") if path.is_dir() else _stem(path))


def _stem(path: Path) -> str:
    """Return the name without its suffix, and without the suffix of a compressed file."""
    while path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.stem.lstrip(".")
