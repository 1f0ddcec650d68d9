"""Named corpora: one is downloaded once, two come with Python."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charwright.data.portable_names import portable_name
from charwright.errors import CorpusError, DownloadError


@dataclass(frozen=True)
class PublishedText:
    """A text to download, identified by its hash."""

    file_name: str
    size_bytes: int
    sha256: str
    mirrors: tuple[str, ...]


SHAKESPEARE = PublishedText(
    file_name="shakespeare.txt",
    size_bytes=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    mirrors=(
        "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
)


def find_published(
    published: PublishedText, data_folder: Path | None, cache_folder: Path, progress: Any, *, offline: bool = False
) -> Path:
    """Return the file of a published text, from the data folder, the cache or the network.

    Raises:
        DownloadError: when no mirror sends the expected file.
    """
    if data_folder is not None and (found := _in_folder(data_folder, published)) is not None:
        return found
    reasons = []
    for mirror in published.mirrors:
        try:
            return download(
                mirror,
                cache_folder,
                progress,
                sha256=published.sha256,
                file_name=published.file_name,
                offline=offline,
            )
        except DownloadError as error:
            reasons.append(error.for_shell)
    raise DownloadError(
        f"{reasons[0]} ({len(published.mirrors)} mirrors tried), or put the file, under any name, in a folder "
        f"and set CHARWRIGHT_DATA to that folder"
    )


def _in_folder(folder: Path, published: PublishedText) -> Path | None:
    """Return the first file directly in `folder` with the hash of this text; only files of its size are read."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            fits = path.is_file() and path.stat().st_size == published.size_bytes
            if fits and hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256:
                return path
        except OSError:
            continue  # An unreadable file cannot be used.
    return None


def cached_name(url: str) -> str:
    """Return the name of the cached copy of `url`.

    Raises:
        ValueError: when it is no URL.
    """
    import pooch

    return portable_name(pooch.utils.unique_file_name(url))


def kept_copy(url: str, cache_folder: Path) -> Path | None:
    """Return the cached copy of `url`, or None."""
    try:
        path = cache_folder / cached_name(url)
    except ValueError:
        return None  # Not a valid URL; the download reports it.
    return path if path.is_file() else None


def download(
    url: str,
    cache_folder: Path,
    progress: Any,
    *,
    sha256: str | None = None,
    file_name: str | None = None,
    offline: bool = False,
) -> Path:
    """Download `url` into the cache folder unless it is there; `progress` is a pooch progress bar or None.

    Raises:
        DownloadError: when the host is unreachable, answers with an error or sends an unexpected file, or the file
            is not in the cache folder and `offline` refuses to download it.
    """
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pooch imports tqdm, which warns in a notebook without widgets.
        import pooch
    import requests

    if offline and not (cache_folder / (file_name or cached_name(url))).is_file():
        raise DownloadError(f"{url} has not been downloaded")

    pooch.get_logger().setLevel(logging.ERROR)
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}" if sha256 else None,
            fname=file_name or cached_name(url),
            path=cache_folder,
            downloader=pooch.HTTPDownloader(progressbar=progress or False, timeout=30),
        )
    except requests.exceptions.HTTPError as error:
        status = "an error"
        if error.response is not None:
            status = str(error.response.status_code)
            error.response.close()  # pooch leaves the connection open
        raise DownloadError(f"{url} returned {status}; check the URL") from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"could not reach {url}; check the URL and the network") from error
    except OSError as error:
        raise DownloadError(f"cannot save {url} in {cache_folder}: {error.strerror or error}") from error
    except ValueError as error:  # pooch raises it for a hash mismatch, too
        if sha256 is None:
            raise DownloadError(f"{url} is not a valid URL: {error}") from error
        raise DownloadError(f"the file at {url} does not have the expected SHA-256 {sha256}") from error
    return Path(path)


def python_docs() -> str:
    """Return the topics of the language reference, as `help()` shows them."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some systems package it separately
        raise CorpusError("this Python has no pydoc_data; use python-code or a text of your own") from error
    return "\n".join(topics[name] for name in sorted(topics))


def python_code() -> str:
    """Return the source of the standard library without its tests."""
    return "\n".join(library_sources(Path(sysconfig.get_path("stdlib"))))


def library_sources(library: Path) -> Iterator[str]:
    """Yield the source files under a Python library folder, sorted by path, without tests and installed packages."""
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    for path in sorted(library.rglob("*.py")):
        if left_out.isdisjoint(path.relative_to(library).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # A few files are in another encoding or unreadable.


GENERATED: dict[str, Callable[[], str]] = {"python-docs": python_docs, "python-code": python_code}
PUBLISHED: dict[str, PublishedText] = {"shakespeare": SHAKESPEARE}
NAMES: tuple[str, ...] = (*PUBLISHED, *GENERATED)


def read(name: str, data_folder: Path | None, cache_folder: Path, progress: Any, *, offline: bool = False) -> bytes:
    """Return a named corpus as UTF-8.

    Raises:
        CorpusError: when this Python does not include it.
        DownloadError: when it cannot be downloaded.
    """
    if name in GENERATED:
        return GENERATED[name]().encode("utf-8")
    return find_published(PUBLISHED[name], data_folder, cache_folder, progress, offline=offline).read_bytes()
