"""Files as streams of bytes: decompressed on the way, and from other file systems through fsspec."""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from charwright.errors import CorpusError, CorpusNotFoundError, DecodingError, MissingExtraError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
EXPANSION = 4
"""How much longer than its compressed file a text is taken to be, before it is read."""

READ_BYTES = 1 << 18
INFLATED_BYTES = 1 << 20
"""What is decompressed at a time: more does not stay in the processor's cache."""

_GZIP = 31
"""How zlib names the format."""

_ERRORS = ("ZstdError", "IsalError")
"""Exceptions of optional packages."""

Count = Callable[[int], None]


def open_stream(opener: Callable[[], BinaryIO], suffix: str, where: str, count: Count | None = None) -> BinaryIO:
    """Open a file and decompress it by its suffix; `count` is called with the number of each bytes that are read.

    Raises:
        DecodingError: (while reading) when the compressed data is damaged.
        MissingExtraError: for .zst, when no package that reads it is installed.
        OSError: when the file cannot be opened or read.
    """
    reader = _zstd_reader() if suffix.lower() == ".zst" else None
    file = opener()
    if count is not None:
        file = cast(BinaryIO, _Counting(file, count))
    match suffix.lower():
        case ".gz":
            return cast(BinaryIO, _Checked(_Gunzip(file), file, where))
        case ".bz2":
            return cast(BinaryIO, _Checked(bz2.BZ2File(file), file, where))
        case ".xz":
            return cast(BinaryIO, _Checked(lzma.LZMAFile(file), file, where))
    return file if reader is None else cast(BinaryIO, _Checked(reader(file), file, where))


def _zstd_reader() -> Callable[[BinaryIO], Any]:
    """What reads .zst: Python itself from 3.14 on, or the backport."""
    for module in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return cast(Callable[[BinaryIO], Any], importlib.import_module(module).ZstdFile)
    raise MissingExtraError("reading .zst", "zstd")


class _Counting:
    """Reports how many bytes are read from a file."""

    def __init__(self, file: BinaryIO, count: Count) -> None:
        self._file, self._count = file, count

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._count(len(data))
        return data

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Counting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _inflater() -> Callable[[], Any]:
    """What decompresses a member of a .gz file: ISA-L where it is installed, which is faster than zlib."""
    with suppress(ImportError):
        return partial(importlib.import_module("isal.isal_zlib").decompressobj, _GZIP)
    return partial(zlib.decompressobj, _GZIP)


class _Gunzip:
    """Decompresses a .gz file, of one member or several, faster than `gzip.GzipFile`."""

    def __init__(self, file: BinaryIO) -> None:
        self._new = _inflater()
        self._file, self._inflate = file, self._new()
        self._data = file.read(READ_BYTES)
        self._ended = not self._data  # `gzip` takes an empty file for an empty text, too.

    def read(self, size: int = -1) -> bytes:
        parts: list[bytes] = []
        while size and not self._ended:
            part = self._inflate.decompress(self._data, min(size, INFLATED_BYTES) if size > 0 else INFLATED_BYTES)
            parts.append(part)
            size -= len(part) if size > 0 else 0
            if self._inflate.eof:
                self._begin_member(self._inflate.unused_data)
            else:
                self._data = self._inflate.unconsumed_tail or self._file.read(READ_BYTES)
                if not self._data and not part:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        return b"".join(parts)

    def _begin_member(self, rest: bytes) -> None:
        """Go on after the end of a member: only zeros, and further members, may follow."""
        self._data = rest.lstrip(b"\0")
        while not self._data and (more := self._file.read(READ_BYTES)):
            self._data = more.lstrip(b"\0")
        self._ended, self._inflate = not self._data, self._new()

    def close(self) -> None:
        self._file.close()


class _Checked:
    """A decompressing file, whose errors name the compressed one."""

    def __init__(self, reader: Any, file: BinaryIO, where: str) -> None:
        self._reader, self._file, self._where = reader, file, where

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._reader.read(size))
        except Exception as error:
            if not isinstance(error, (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)) and (
                type(error).__name__ not in _ERRORS
            ):
                raise
            raise DecodingError(
                f"cannot decompress {self._where}: {error}; the file is cut off or damaged, or not compressed as its "
                "name says"
            ) from error

    def close(self) -> None:
        self._reader.close()
        self._file.close()

    def __enter__(self) -> _Checked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class RemoteFile:
    """A file on a file system of fsspec, such as `s3://bucket/text.txt`."""

    address: str
    size: int
    stamp: str
    """What changes when the file does, as far as its file system says: its version, its time."""
    opener: Callable[[], BinaryIO]


def is_remote(spec: str) -> bool:
    """Whether an argument is the address of another file system; http and https are downloads instead."""
    scheme = spec.partition("://")[0].lower()
    return "://" in spec and scheme not in ("http", "https", "") and not Path(spec).exists()


def remote_file(address: str) -> RemoteFile:
    """Find a file through fsspec.

    Raises:
        MissingExtraError: when fsspec is not installed.
        CorpusError: (or a subclass) when it has no such file system or file.
    """
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError(f"reading {address}", "fsspec") from error
    try:
        system, path = fsspec.core.url_to_fs(address)
        found = system.info(path)
    except FileNotFoundError as error:
        raise CorpusNotFoundError(f"there is no file {address}") from error
    except ImportError as error:  # fsspec's message names the package of that file system
        raise CorpusError(f"cannot read {address}: {error}") from error
    except Exception as error:  # Each file system has exceptions of its own.
        raise CorpusError(f"cannot read {address}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if found.get("type") == "directory":
        raise CorpusError(f"{address} is a folder; name its files")
    stamps = [str(found[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created") if key in found]
    opener = lambda: cast(BinaryIO, system.open(path, "rb"))  # noqa: E731
    return RemoteFile(address, int(found.get("size") or 0), " ".join(stamps), opener)


def suffix_of(address: str) -> str:
    """Return the suffix of the file that an address names."""
    return Path(urlsplit(address).path).suffix
